"""What each component does: where a head looks, what it writes, and the role that follows.

Three looks at clean prompts (paper, sections on the functions of heads and on MLPs; claims C10 to
C18): attention between groups of tokens, the OV circuit's output on members read through the
unembedding, and the logit lens before and after each MLP. :func:`assign` turns them into roles by
the thresholds below, and by nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformer_lens.tools.analysis import logit_readout
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.ablation import Component, components
from seqcirc_utils.capabilities import head_values, logits, require, shares, wiring
from seqcirc_utils.metrics import intervals
from seqcirc_utils.models import Model
from seqcirc_utils.tasks import Prompts, Vocabulary

ATTENTION = 0.2
"""Least mean attention from the queries of a role to its keys."""
LIFT = 1.5
"""… and at least so many times what attention spread evenly over all visible tokens would give."""
TOP_K = 5
"""An OV output hits a word that is among its so many highest logits (the paper's 5)."""
OV_SHARE = 0.25
"""Least share of members hit, for a head that writes the next member or copies."""
OV_P = 0.01
"""… and largest p-value against shuffled successors."""
DIRECT = 0.1
"""Inhibition: a head's own write lowers the last member's logit by so many logits at least."""
LENS_STEP = 0.02
"""Least rise of the lens probability of the next (last) member across an MLP."""

HEAD_ROLES = (
    "next member",
    "copy",
    "inhibition",
    "transport to the end",
    "duplicate token",
    "member detection",
)
MLP_ROLES = ("promotes next member", "copies last member")
NONE = "none"

ORDINALS = tuple(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)
RANKS = (1, 5, 10)
"""OV hits are counted among so many highest logits."""
_DEEPEST = max(RANKS)
_NULL_DRAWS = 999
_SO = "what a single head writes cannot be told: roles do not apply. Ablation does."


def thresholds() -> dict[str, float]:
    """The thresholds of the rules, by name."""
    names = ("ATTENTION", "LIFT", "TOP_K", "OV_SHARE", "OV_P", "DIRECT", "LENS_STEP")
    return {name.lower(): globals()[name] for name in names}


def rules() -> pd.DataFrame:
    """The rules in words, with their thresholds, in the order in which they are tried.

    A head may look to several places in A: the one counts where attention times the size of the
    head's write is largest.
    """
    end = f"end to members ≥ {ATTENTION:g} and ≥ {LIFT:g} × even spread"
    write = f"≥ {OV_SHARE:.0%} of members hit (top {TOP_K}), p ≤ {OV_P:g}"
    rows = [
        ("next member", "head", end, f"next: {write}, more than copy"),
        ("copy", "head", end, f"copy: {write}"),
        ("inhibition", "head", end, f"lowers the last member's logit by ≥ {DIRECT:g}"),
        ("transport to the end", "head", end, "none of these"),
        ("duplicate token", "head", '"in" to earlier "in", likewise', "anything"),
        ("member detection", "head", "members to earlier members, likewise", "anything"),
        ("promotes next member", "MLP", "", f"lens probability of the answer + {LENS_STEP:g}"),
        ("copies last member", "MLP", "", f"lens probability of the last member + {LENS_STEP:g}"),
    ]
    return pd.DataFrame(rows, columns=["role", "of", "A: where it looks", "what it writes"])


# --- Where heads look ----------------------------------------------------------------------------


def query_groups(prompts: Prompts) -> dict[str, torch.Tensor]:
    """Where attention is read from: name to boolean mask ``[n, pos]``.

    ``member 1`` …, ``later members`` (all but the first), ``in`` (those before a shown member, but
    the first), ``end``, and as a control ``filler``: the name or thing of each sentence but the
    first.
    """
    groups = prompts.groups()
    members = [mask for name, mask in groups.items() if name.startswith("member")]
    found = {f"member {i + 1}": mask for i, mask in enumerate(members)}
    found["later members"] = torch.stack(members[1:] or members).any(0)
    found["in"] = _marked(prompts, prompts.in_positions[:, 1:-1])
    found["end"] = groups["end"]
    found["filler"] = _marked(prompts, _fillers(prompts)[:, 1:])
    return found


def _fillers(prompts: Prompts) -> torch.Tensor:
    return prompts.in_positions - 2  # every template reads "<filler> <verb> in"


def _marked(prompts: Prompts, positions: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(prompts.tokens.shape, dtype=torch.bool)
    return mask.scatter(1, positions, True)


def key_groups(prompts: Prompts) -> dict[str, torch.Tensor]:
    """What attention is read to, seen from each query: name to boolean mask ``[n, query, key]``.

    ``newest member`` is the last one before the query, ``earlier members`` those before it,
    ``itself`` the query, ``earlier copies`` earlier tokens equal to it, then ``previous token``,
    ``first token`` and, as a control, ``earlier fillers``; ``member i`` is one member. Groups may
    overlap: the previous token may be a member.
    """
    n, pos = prompts.tokens.shape
    at = torch.arange(pos)
    before = at[:, None] > at  # [query, key]
    member = _marked(prompts, prompts.member_positions)[:, None, :] & before
    order = prompts.member_positions.sort(-1).values
    # For each query the number of members before it: the newest is the one with that number.
    passed = member.sum(-1, keepdim=True)
    number = torch.zeros(n, pos, dtype=torch.long)
    number.scatter_(1, order, torch.arange(1, order.shape[1] + 1).expand(n, -1))
    newest = member & (number[:, None, :] == passed)
    same = prompts.tokens[:, :, None] == prompts.tokens[:, None, :]
    found = {
        "earlier members": member & ~newest,
        "newest member": newest,
        "itself": torch.eye(pos, dtype=torch.bool).expand(n, -1, -1),
        "earlier copies": same & before,
        "previous token": (at[:, None] == at + 1).expand(n, -1, -1),
        "first token": (before & (at == 0)).expand(n, -1, -1),
        "earlier fillers": _marked(prompts, _fillers(prompts))[:, None, :] & before,
    }
    for i in range(order.shape[1]):
        found[f"member {i + 1}"] = _marked(prompts, order[:, i : i + 1])[:, None, :] & before
    return found


def group_attention(
    pattern: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    """Attention from query groups to key groups, averaged over the queries of a prompt.

    Args:
        pattern: ``[n, head, query position, key position]``.
        queries: Masks ``[group, n, query position]``.
        keys: Masks ``[group, n, query position, key position]``.

    Returns:
        ``[head, n, query group, key group]``; zero for a query group without a token.
    """
    weights = queries / queries.sum(-1, keepdim=True).clamp(min=1)
    summed = torch.stack([(pattern * mask[:, None]).sum(-1) for mask in keys.float()], -1)
    return torch.einsum("nhqk,gnq->hngk", summed, weights.to(summed))


@dataclass(frozen=True)
class Observation:
    """What one pass over clean prompts shows, kept small: no whole pattern or stream.

    Attributes:
        queries: Names of the query groups.
        keys: Names of the key groups.
        attention: ``[layer, head, n, query group, key group]``.
        uniform: The same for attention spread evenly over all visible tokens
            ``[query group, key group]``.
        members: Residual stream that enters each block where members stand
            ``[layer, n, member, d_model]``.
        embedded: The same after block 0, the paper's shortcut ``[n, member, d_model]``.
        end: Residual stream at the end, before each attention and each MLP in turn and after the
            last block ``[2 * layer + 1, n, d_model]``. Where a layer's MLP runs beside its
            attention, its write is added last.
        z: Heads at the end before the output projection ``[layer, n, head, d_head]``.
        sizes: Norm of what each head writes, averaged over a query group's positions
            ``[layer, head, n, query group]``.
    """

    queries: list[str]
    keys: list[str]
    attention: torch.Tensor
    uniform: torch.Tensor
    members: torch.Tensor
    embedded: torch.Tensor
    end: torch.Tensor
    z: torch.Tensor
    sizes: torch.Tensor

    def attended(self, query: str, *keys: str) -> torch.Tensor:
        """Attention from one query group to some key groups together ``[layer, head, n]``."""
        columns = [self.keys.index(key) for key in keys]
        return self.attention[:, :, :, self.queries.index(query), columns].sum(-1)

    def spreads(self) -> dict[str, float]:
        """What evenly spread attention would give in each column of attention evidence."""
        return {name: self.spread(*groups) for name, groups in ATTENTION_EVIDENCE.items()}

    def spread(self, query: str, *keys: str) -> float:
        """What evenly spread attention would give there."""
        columns = [self.keys.index(key) for key in keys]
        return self.uniform[self.queries.index(query), columns].sum().item()


def _sizes(model: Model, layer: int, z: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    share = queries / queries.sum(-1, keepdim=True).clamp(min=1)
    if "heads" in wiring(model).lacks:
        sizes = head_writes(model, layer, z.flatten(0, 1)).norm(dim=-1).unflatten(0, z.shape[:2])
        return torch.einsum("nph,gnp->hng", sizes.cpu(), share)
    weights = model.bridge.blocks[layer].attn.W_O * wiring(model).attention[layer]
    squared = torch.einsum("nphd,hde,hfe,nphf->hnp", z, weights, weights, z)
    return torch.einsum("hnp,gnp->hng", squared.clamp(min=0).sqrt().cpu(), share)


@torch.no_grad()
def observe(model: Model, prompts: Prompts, batch: int = 32) -> Observation:
    """Run the model once and keep what roles are read from.

    Raises:
        UserError: for a model whose heads' writes cannot be told apart.
    """
    between = require(model, "shares between", _SO).between
    layers = range(model.n_layers)
    middle = ["hook_resid_mid" if known else "hook_mlp_out" for known in between]
    parts = []
    for rows in tqdm(torch.arange(len(prompts)).split(batch), desc="Observing", unit="batch"):
        part = prompts[rows.tolist()]
        queries = torch.stack(list(query_groups(part).values()))
        keys = torch.stack(list(key_groups(part).values()))
        attend = partial(group_attention, queries=queries, keys=keys)
        n = torch.arange(len(part))[:, None]
        where = part.member_positions
        small = {
            ("attn.hook_pattern", "groups"): lambda v, layer, f=attend: f(v.cpu()),
            ("attn.hook_z", "end"): lambda v, layer: v[:, -1].clone(),
            ("attn.hook_z", "sizes"): lambda v, layer, q=queries: _sizes(model, layer, v, q),
            ("hook_in", "end"): lambda v, layer: v[:, -1].clone(),
            ("hook_in", "members"): lambda v, layer, n=n, where=where: v[n, where],
            ("middle", "end"): lambda v, layer: v[:, -1].clone(),
            ("hook_out", "end"): lambda v, layer: v[:, -1].clone(),
            ("hook_out", "members"): lambda v, layer, n=n, where=where: v[n, where],
        }
        seen: dict[tuple, torch.Tensor] = {}

        def keep(value: torch.Tensor, hook: Any, at: tuple, seen: dict, reduce: Callable) -> None:
            seen[at] = reduce(value, at[0])

        hooks = [
            (
                f"blocks.{i}.{middle[i] if at[0] == 'middle' else at[0]}",
                partial(keep, at=(i, *at), seen=seen, reduce=reduce),
            )
            for i in layers
            for at, reduce in small.items()
        ]
        model.bridge.run_with_hooks(part.tokens.to(model.device), return_type=None, fwd_hooks=hooks)
        for i in layers:
            if not between[i]:
                seen[i, "middle", "end"] = seen[i, "hook_out", "end"] - seen[i, "middle", "end"]
        ends = [seen[i, name, "end"] for i in layers for name in ("hook_in", "middle")]
        even = torch.ones(keys.shape[-2:]).tril()
        even = (even / even.sum(-1, keepdim=True)).expand(len(part), 1, -1, -1)
        parts.append(
            {
                "attention": torch.stack([seen[i, "attn.hook_pattern", "groups"] for i in layers]),
                "uniform": attend(even),
                "members": torch.stack([seen[i, "hook_in", "members"] for i in layers]),
                "embedded": seen[0, "hook_out", "members"][None],
                "end": torch.stack([*ends, seen[layers[-1], "hook_out", "end"]]),
                "z": torch.stack([seen[i, "attn.hook_z", "end"] for i in layers]),
                "sizes": torch.stack([seen[i, "attn.hook_z", "sizes"] for i in layers]),
            }
        )
    prompt_axis = dict.fromkeys(parts[0], 1) | {"attention": 2, "sizes": 2}
    whole = {k: torch.cat([p[k] for p in parts], axis) for k, axis in prompt_axis.items()}
    whole["uniform"] = whole["uniform"][0].mean(0)
    whole["embedded"] = whole["embedded"][0]
    return Observation(queries=list(query_groups(part)), keys=list(key_groups(part)), **whole)


# --- What heads write ----------------------------------------------------------------------------


def head_writes(model: Model, layer: int, z: torch.Tensor) -> torch.Tensor:
    """What each head adds to the residual stream.

    Where a model normalises the heads' sum (Gemma 2), each head gets its share of the result. The
    output bias belongs to no head.

    Args:
        model: The model.
        layer: The layer.
        z: Heads before the output projection ``[rows, head, d_head]``.

    Returns:
        ``[rows, head, d_model]``.

    Raises:
        UserError: for a model whose heads' writes cannot be told apart.
    """
    block, factor = model.bridge.blocks[layer], require(model, "shares", _SO).attention[layer]
    writes = torch.einsum("rhd,hde->rhe", z, block.attn.W_O)
    return shares(block, writes if factor == 1 else writes * factor)


def ov_writes(model: Model, layer: int, stream: torch.Tensor) -> torch.Tensor:
    """What each head of a layer writes for a token to which it gives all its attention.

    Args:
        model: The model.
        layer: The layer.
        stream: Residual stream before the block's first norm ``[rows, d_model]``.

    Returns:
        ``[rows, head, d_model]``. Heads that share keys and values share the V part.

    Raises:
        UserError: for a model whose heads' values or writes are not told by weights.
    """
    require(model, "values", _SO)
    return head_writes(model, layer, head_values(model, layer, stream))


class _Reader:
    """Ranks of a few tokens among the whole vocabulary, exact down to rank ``_DEEPEST``.

    The vocabulary is read slab by slab; a row leaves as soon as ``_DEEPEST`` other tokens beat
    all of the wanted ones, which nearly every row does at once.
    """

    def __init__(self, model: Model, ids: Sequence[int], first: int = 1024) -> None:
        self.norm = model.bridge.ln_final
        weights, bias = model.bridge.W_U, model.bridge.b_U
        others = torch.ones(weights.shape[1], dtype=torch.bool)
        others[list(ids)] = False
        order = others.nonzero()[:, 0]
        # Any order is exact. A random one meets strong rivals early.
        order = order[torch.randperm(len(order), generator=derive_generator(0, "slabs"))]
        self.wanted = weights[:, list(ids)], bias[list(ids)]
        self.slabs, size = [], first
        while len(order):
            now, order = order[:size], order[size:]
            self.slabs.append((weights[:, now], bias[now]))
            size *= 2

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Ranks ``[rows, id]`` (0: on top; ``_DEEPEST``: that or lower) for ``[rows, d_model]``."""
        x = self.norm(vectors)
        goal = x @ self.wanted[0] + self.wanted[1]
        best = goal.max(-1).values
        top = goal.new_full((len(x), _DEEPEST), -torch.inf)
        left = torch.arange(len(x), device=x.device)
        for weights, bias in self.slabs:
            logits = torch.cat([top[left], x[left] @ weights + bias], 1)
            top[left] = logits.topk(_DEEPEST).values
            left = left[best[left] > top[left, -1]]
            if not len(left):
                break
        # A tie counts against a token: a head that writes nothing puts nothing on top.
        above = (top[:, None, :] >= goal[:, :, None]).sum(-1)
        above += (goal[:, None, :] >= goal[:, :, None]).sum(-1) - 1
        return above.clamp(max=_DEEPEST)


def spellings(tokenizer: Any, words: Sequence[str]) -> list[list[int]]:
    """Single tokens that write each word, with or without a leading space (maybe none)."""
    found = []
    for word in words:
        forms = [tokenizer(w, add_special_tokens=False)["input_ids"] for w in (f" {word}", word)]
        single = {form[0] for form in forms if len(form) == 1}
        found.append(sorted(single - {tokenizer.unk_token_id}))
    return found


@torch.no_grad()
def ov_ranks(
    model: Model, streams: torch.Tensor, words: Sequence[str], chunk: int = 4096
) -> torch.Tensor:
    """Rank of each word in each head's OV output, read by final norm and unembedding.

    Args:
        model: The model.
        streams: What the heads of each layer read, before its norm ``[layer, n, member,
            d_model]`` (or ``[1, …]``: every layer the same).
        words: Words; the better of a word's two spellings counts, as published.
        chunk: Rows unembedded together: bounds the memory.

    Returns:
        Ranks ``[layer, head, n, member, word]``, 0 for the highest logit; 10 stands for that or
        lower, or a word that is not one token.

    Raises:
        UserError: for a model whose heads' values, writes, or logits are not told by weights.
    """
    require(model, "readout values shares", _SO)
    forms = spellings(model.tokenizer, words)
    ids = sorted({i for form in forms for i in form})
    n, members = streams.shape[1:3]
    streams = streams.expand(model.n_layers, -1, -1, -1)
    found = torch.full((model.n_layers, n, members, model.n_heads, len(words)), _DEEPEST).byte()
    if ids:
        reader = _Reader(model, ids)
        for layer in tqdm(range(model.n_layers), desc="OV outputs", unit="layer"):
            writes = ov_writes(model, layer, streams[layer].flatten(0, 1)).flatten(0, 1)
            ranks = torch.cat([reader(part) for part in writes.split(chunk)]).cpu()
            for word, form in enumerate(forms):
                if form:
                    best = ranks[:, [ids.index(i) for i in form]].min(-1).values
                    found[layer, ..., word] = best.byte().reshape(n, members, model.n_heads)
    return found.permute(0, 3, 1, 2, 4)


@torch.no_grad()
def bare_sequences(
    model: Model, vocabulary: Vocabulary, n_members: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """The published OV input: members alone in a row, nothing in front, after block 0.

    Position 0, which attention heads use as a resting place, so holds the first member.

    Returns:
        The residual stream after block 0 ``[n, member, d_model]``, and which member stands where
        ``[n, member]``; one row per start.
    """
    shown = torch.tensor(vocabulary.starts(n_members))[:, None] + torch.arange(n_members)
    separator = model.tokenizer(" ", add_special_tokens=False)["input_ids"]
    separator = separator if vocabulary.space_apart else []
    rows = []
    for row in shown.tolist():
        bare = model.tokenizer(vocabulary.members[row[0]], add_special_tokens=False)["input_ids"]
        rows.append(bare if len(bare) == 1 else [vocabulary.ids[row[0]]])
        for member in row[1:]:
            rows[-1] = [*rows[-1], *separator, vocabulary.ids[member]]
    kept = []
    hook = ("blocks.0.hook_out", lambda v, hook: kept.append(v.clone()))
    tokens = torch.tensor(rows, device=model.device)
    model.bridge.run_with_hooks(tokens, return_type=None, fwd_hooks=[hook])
    return kept[0][:, :: 1 + len(separator)], shown


def shuffled_successors(known: Sequence[int], total: int, draws: int, seed: int) -> torch.Tensor:
    """Successors in random cyclic orders of the known members ``[draw, total]``.

    Members that are not known succeed themselves.
    """
    found = torch.arange(total).repeat(draws, 1)
    ids = torch.tensor(known)
    for draw in range(draws):
        order = ids[torch.randperm(len(ids), generator=derive_generator(seed, "order", draw))]
        found[draw, order] = order.roll(-1)
    return found


def null_p(hits: torch.Tensor, shown: torch.Tensor, step: int, null: torch.Tensor) -> torch.Tensor:
    """P-value of each head's hits against members wanted in a random order instead.

    A head that writes members of the task, but no particular one, does as well in any order.

    Args:
        hits: ``[..., rows, member]``: is this member among the head's highest logits?
        shown: Index of the member that stands there ``[rows]``.
        step: 1 when the next member is wanted, 0 for the member itself.
        null: As :func:`shuffled_successors` gives.

    Returns:
        ``[...]``, (draws at least as good + 1) / (draws + 1).
    """
    total = hits.shape[-1]
    by_shown = torch.zeros(*hits.shape[:-2], total, total)  # [..., shown, hit]
    by_shown.index_add_(-2, shown, hits.float())
    present = shown.unique()
    present = present[present + step < total]
    true = by_shown[..., present, present + step].sum(-1)
    drawn = torch.stack([by_shown[..., present, order[present]].sum(-1) for order in null])
    return ((drawn >= true).sum(0).double() + 1) / (len(null) + 1)


def member_indices(prompts: Prompts, vocabulary: Vocabulary) -> torch.Tensor:
    """Which member of the task stands at each place ``[n, member]``."""
    place = {member: i for i, member in enumerate(vocabulary.members)}
    return torch.tensor([[place[m] for m in members] for members in prompts.members])


def word_hits(ranks: torch.Tensor, shown: torch.Tensor, step: int, k: int = TOP_K) -> torch.Tensor:
    """Whether the word of each place (``step`` 1: the following word) is among the ``k`` highest.

    Args:
        ranks: ``[layer, head, n, member, word]``.
        shown: Index of the word that stands there ``[n, member]``.
        step: 0 for that word, 1 for the next; past the list's end nothing is hit.
        k: At most 10.

    Returns:
        ``[layer, head, n, member]``, boolean.
    """
    total = ranks.shape[-1]
    wanted = (shown + step).clamp(max=total - 1).expand(*ranks.shape[:2], -1, -1)
    found = ranks.gather(-1, wanted[..., None])[..., 0] < k
    return found & (shown + step < total)


def ov_table(
    model: Model, ranks: torch.Tensor, shown: torch.Tensor, known: Sequence[int], seed: int
) -> pd.DataFrame:
    """Copy and next scores of every head.

    Args:
        model: The model.
        ranks: Ranks of one list of words ``[layer, head, n, member, word]``.
        shown: Index in that list of what stands at each place ``[n, member]``.
        known: Indices of the words that are single tokens; the null shuffles these.
        seed: Draws the null.

    Returns:
        A row per head and ``score`` (``copy``, ``next``): the share of members whose own (next)
        word is among the highest 1, 5 or 10 logits (``top1``, ``top5``, ``top10``), the 95%
        interval of ``top5`` over prompts (``low``, ``high``), its p-value against shuffled
        successors (``p``), and ``top5`` by the member's place in the prompt (``place 1`` …).
    """
    total = ranks.shape[-1]
    known = sorted({*known, *shown.unique().tolist()} & set(range(total)))
    null = shuffled_successors(known, total, _NULL_DRAWS, seed)
    tables = []
    for score, step in (("copy", 0), ("next", 1)):
        top = word_hits(ranks, shown, step).double().flatten(0, 1)  # [head, n, member]
        _, low, high = intervals(top.mean(-1), seed)
        p = null_p((ranks < TOP_K).flatten(2, 3).flatten(0, 1), shown.flatten(), step, null)
        table = {
            "component": [str(c) for c in components(model) if c.head is not None],
            "score": score,
            **{
                f"top{k}": word_hits(ranks, shown, step, k).double().mean((2, 3)).flatten()
                for k in RANKS
            },
            "low": low,
            "high": high,
            "p": p,
        }
        table |= {f"place {i + 1}": top[..., i].mean(1) for i in range(top.shape[-1])}
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def p_values(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """The p-values of :func:`ov_table` as ``p_next`` and ``p_copy`` of every head."""
    return {f"p_{s}": scores.loc[scores["score"] == s, "p"].to_numpy() for s in ("next", "copy")}


@torch.no_grad()
def direct_writes(
    model: Model, observation: Observation, prompts: Prompts, vocabulary: Vocabulary
) -> dict[str, torch.Tensor]:
    """What the final logits owe to each head's own write at the end of the prompt.

    The logits with the write minus those without it (its effects on later components stay), for
    ``next`` (the answer) and ``last`` (the last member), each over the mean of the task's other
    members.

    Returns:
        ``[layer, head, n]`` each, in logits.

    Raises:
        UserError: for a model whose heads' writes or logits are not told by weights.
    """
    require(model, "readout", _SO)
    bridge, final = model.bridge, observation.end[-1]
    ids = torch.tensor([i for i in vocabulary.ids if i is not None])

    def read(stream: torch.Tensor) -> torch.Tensor:
        return logits(model, bridge.ln_final(stream), ids)

    owed = []
    for layer in range(model.n_layers):
        without = final[:, None] - head_writes(model, layer, observation.z[layer])
        owed.append(read(final)[:, None] - read(without))
    owed = torch.stack(owed).transpose(1, 2).cpu()  # [layer, head, n, member]
    found = {}
    columns = {"next": prompts.answer_ids, "last": prompts.last_ids}
    wanted = {k: (v[:, None] == ids).int().argmax(-1) for k, v in columns.items()}
    others = torch.ones(len(prompts), len(ids))
    for column in wanted.values():
        others.scatter_(1, column[:, None], 0)
    rest = (owed * others).sum(-1) / others.sum(-1).clamp(min=1)
    for name, column in wanted.items():
        index = column.expand(*owed.shape[:2], -1)[..., None]
        found[name] = owed.gather(-1, index)[..., 0] - rest
    return found


# --- What MLPs do --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lens:
    """Logit lens at the end, before each attention and each MLP and after the last block.

    Attributes:
        next: Probability of the answer ``[2 * layer + 1, n]``.
        last: Probability of the last member.
        top: What is on top of the whole vocabulary: 1 the answer, -1 the last member, 0 neither.
    """

    next: torch.Tensor
    last: torch.Tensor
    top: torch.Tensor

    def steps(self, part: str) -> dict[str, torch.Tensor]:
        """Change across each ``attention``, ``mlp`` or ``block``: values ``[layer, n]``.

        ``next`` and ``last``: change of the probability. ``overtakes``: the answer passes the last
        member, for good. ``switches``: the last member is on top before, the answer after.
        """
        start, end = {"attention": (0, 1), "mlp": (1, 2), "block": (0, 2)}[part]
        before = torch.arange(start, len(self.next) - 1, 2)
        after = before + end - start
        ahead = (self.next > self.last).int().flip(0).cummin(0).values.flip(0).bool()  # and stays
        return {
            "next": self.next[after] - self.next[before],
            "last": self.last[after] - self.last[before],
            "overtakes": (~ahead[before] & ahead[after]).float(),
            "switches": ((self.top[before] == -1) & (self.top[after] == 1)).float(),
        }


@torch.no_grad()
def lens(model: Model, observation: Observation, prompts: Prompts) -> Lens:
    """Read the stream at the end, everywhere, through the final norm and the unembedding.

    Raises:
        UserError: for a model whose logits are made in another way.
    """
    require(model, "readout", "a logit lens does not apply.")
    kept = {}
    for name, ids in (("next", prompts.answer_ids), ("last", prompts.last_ids)):
        read = logit_readout(
            model.bridge, observation.end, targets=ids, return_type="probs", chunk_size=256
        )
        assert read.target_ranks is not None  # targets were given
        kept[name] = read.values[..., 0].cpu(), read.target_ranks[..., 0].cpu() == 0
    top = kept["next"][1].int() - kept["last"][1].int()
    return Lens(kept["next"][0], kept["last"][0], top)


# --- Roles ---------------------------------------------------------------------------------------

ATTENTION_EVIDENCE = {
    "end_to_members": ("end", "earlier members", "newest member"),
    "in_to_copies": ("in", "earlier copies"),
    "members_to_members": ("later members", "earlier members", "newest member"),
    "end_to_newest": ("end", "newest member"),
    "fillers_to_fillers": ("filler", "earlier fillers"),
    "members_to_themselves": ("later members", "itself"),
    "members_to_previous": ("later members", "previous token"),
    "members_to_first": ("later members", "first token"),
    "end_to_first": ("end", "first token"),
}
"""Evidence column to query group and key groups. The first three decide; the others tell."""

SIZE_EVIDENCE = {
    "end_to_members": "end",
    "in_to_copies": "in",
    "members_to_members": "later members",
}
"""Where a head that looks there writes; the column is ``<column>_size``, a norm."""


def evidence(
    observation: Observation,
    ranks: torch.Tensor,
    shown: torch.Tensor,
    direct: Mapping[str, torch.Tensor],
    lens: Lens,
) -> dict[str, torch.Tensor]:
    """All evidence, per component and prompt.

    Returns:
        Column to ``[component, n]`` in the order of :func:`seqcirc_utils.ablation.components`;
        NaN where a column does not apply (MLPs have no attention).
    """
    by_head = {k: observation.attended(*v) for k, v in ATTENTION_EVIDENCE.items()}
    for name, step in (("ov_next", 1), ("ov_copy", 0)):
        by_head[name] = word_hits(ranks, shown, step).float().mean(-1)
    for name, query in SIZE_EVIDENCE.items():
        by_head[f"{name}_size"] = observation.sizes[..., observation.queries.index(query)]
    by_head |= {f"direct_{name}": value for name, value in direct.items()}
    by_mlp = {f"lens_{name}": value for name, value in lens.steps("mlp").items()}
    layers, heads, n = observation.attention.shape[:3]
    found = {}
    for name, value in (by_head | by_mlp).items():
        whole = torch.full((layers, heads + 1, n), torch.nan)
        if name in by_head:
            whole[:, :-1] = value
        else:
            whole[:, -1] = value
        found[name] = whole.flatten(0, 1)
    return found


def assign(means: Mapping[str, np.ndarray], spread: Mapping[str, float]) -> np.ndarray:
    """Roles by the rules, and by nothing but the rules.

    Args:
        means: Evidence columns, all of one shape, with ``p_next`` and ``p_copy``; NaN decides
            nothing.
        spread: What evenly spread attention would give in each attention column.

    Returns:
        Names of :data:`HEAD_ROLES`, :data:`MLP_ROLES` or ``none``, of the same shape.
    """
    enough = np.stack([means[k] >= max(ATTENTION, LIFT * spread[k]) for k in SIZE_EVIDENCE])
    moved = np.stack([means[k] * means[f"{k}_size"] for k in SIZE_EVIDENCE])
    moved = np.where(enough, moved, -1)
    end, copies, members = enough & (moved == moved.max(0))
    next_ = (means["ov_next"] >= OV_SHARE) & (means["p_next"] <= OV_P)
    copy = (means["ov_copy"] >= OV_SHARE) & (means["p_copy"] <= OV_P)
    conditions = {
        "next member": end & next_ & (means["ov_next"] > means["ov_copy"]),
        "copy": end & copy,
        "inhibition": end & (means["direct_last"] <= -DIRECT),
        "transport to the end": end,
        "duplicate token": copies,
        "member detection": members,
        "promotes next member": (means["lens_next"] >= LENS_STEP)
        & (means["lens_next"] >= means["lens_last"]),
        "copies last member": means["lens_last"] >= LENS_STEP,
    }
    return np.select(list(conditions.values()), list(conditions), default=NONE)


def role_table(
    model: Model,
    found: Mapping[str, torch.Tensor],
    p_values: Mapping[str, np.ndarray],
    spread: Mapping[str, float],
    seed: int,
    draws: int = 1000,
) -> pd.DataFrame:
    """Role of every component, how sure it is, and its evidence.

    Args:
        model: The model.
        found: As :func:`evidence` gives.
        p_values: ``p_next`` and ``p_copy`` of every head, layer by layer; held fixed in resampling.
        spread: As :meth:`Observation.spreads` gives.
        seed: Draws the resamples of prompts.
        draws: How many.

    Returns:
        A row per component: ``component``, ``layer``, ``head``, ``role``, ``confidence`` (share of
        the resamples of prompts in which the same role comes out), ``rival`` (the most frequent
        other role, with ``rival_share``), then the means of the evidence, with 95% intervals
        (``…_low``, ``…_high``) of the columns that decide, and the p-values.
    """
    everything = components(model)
    n = next(iter(found.values())).shape[1]
    p: dict[str, np.ndarray] = {}
    for name, values in p_values.items():
        p[name] = np.full((model.n_layers, model.n_heads + 1), np.nan)
        p[name][:, :-1] = values.reshape(model.n_layers, model.n_heads)
        p[name] = p[name].ravel()
    means = {name: value.double().mean(-1).numpy() for name, value in found.items()}
    role = assign(means | p, spread)
    picked = torch.randint(0, n, (draws, n), generator=derive_generator(seed, "prompts"))
    weights = torch.stack([row.bincount(minlength=n) for row in picked]).double() / n
    resampled = {k: (weights @ v.double().T).numpy() for k, v in found.items()}
    wide = {name: np.broadcast_to(value, (draws, len(everything))) for name, value in p.items()}
    drawn = assign(resampled | wide, spread)
    table = pd.DataFrame(
        {
            "component": list(map(str, everything)),
            "layer": [c.layer for c in everything],
            "head": pd.array([c.head for c in everything], dtype="Int64"),
            "role": role,
            "confidence": (drawn == role).mean(0),
        }
    )
    rivals = [pd.Series(drawn[:, i][drawn[:, i] != r]).value_counts() for i, r in enumerate(role)]
    table["rival"] = [r.index[0] if len(r) else "" for r in rivals]
    table["rival_share"] = [r.iloc[0] / draws if len(r) else 0.0 for r in rivals]
    for name in found:
        table[name] = means[name]
        if name in DECIDING:
            bounds = np.quantile(resampled[name], (0.025, 0.975), axis=0)
            table[f"{name}_low"], table[f"{name}_high"] = bounds
    return table.assign(**p)


DECIDING = (
    *SIZE_EVIDENCE,
    "ov_next",
    "ov_copy",
    "direct_last",
    "lens_next",
    "lens_last",
)
"""Evidence columns that the rules read."""


def attention_table(
    model: Model, observation: Observation, heads: Sequence[str], seed: int
) -> pd.DataFrame:
    """Attention between all groups, with 95% intervals over prompts for some heads.

    Returns:
        Columns ``component``, ``query``, ``key``, ``mean``, ``low``, ``high``, ``spread`` (what
        evenly spread attention would give).
    """
    rows = []
    for c in components(model):
        if str(c) not in heads:
            continue
        values = observation.attention[c.layer, c.head].permute(1, 2, 0)  # [query, key, n]
        mean, low, high = intervals(values.flatten(0, 1), seed)
        index = pd.MultiIndex.from_product([observation.queries, observation.keys])
        rows.append(
            pd.DataFrame(
                {
                    "component": str(c),
                    "query": index.get_level_values(0),
                    "key": index.get_level_values(1),
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "spread": observation.uniform.flatten(),
                }
            )
        )
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


@torch.no_grad()
def patterns(model: Model, prompt: Prompts, heads: Sequence[str]) -> dict[str, torch.Tensor]:
    """Whole attention patterns of some heads on one prompt: name to ``[query, key]``."""
    found = {}
    wanted = [Component.parse(name) for name in heads]

    def keep(value: torch.Tensor, hook: Any, layer: int) -> None:
        for c in wanted:
            if c.layer == layer:
                found[str(c)] = value[0, c.head].cpu()

    hooks = [
        (f"blocks.{layer}.attn.hook_pattern", lambda v, hook, i=layer: keep(v, hook, i))
        for layer in {c.layer for c in wanted}
    ]
    model.bridge.run_with_hooks(
        prompt.tokens[:1].to(model.device), return_type=None, fwd_hooks=hooks
    )
    return {name: found[name] for name in heads}

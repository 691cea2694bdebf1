"""What heads write: copy and next scores of the OV circuit, direct effects on the logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.ablation.replay import run_blocks
from seqcirc_utils.analyses.heads import UNTOLD, head_writes, ov_writes
from seqcirc_utils.analyses.observation import Observation
from seqcirc_utils.components import components
from seqcirc_utils.models.capabilities import logits, require
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.vocabulary import Vocabulary
from seqcirc_utils.statistics import intervals

TOP_K = 5
"""An OV output hits a word that is among its so many highest logits (the paper's 5)."""

ORDINALS = tuple(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)
RANKS = (1, 5, 10)
"""OV hits are counted among so many highest logits."""
_DEEPEST = max(RANKS)
_NULL_DRAWS = 999


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
        x = self.norm(vectors)  # [row, d_model]
        goal = x @ self.wanted[0] + self.wanted[1]  # logits of the wanted [row, id]
        best = goal.max(-1).values  # [row]
        # The highest logits of others so far [row, deepest], and the rows that go on.
        top = goal.new_full((len(x), _DEEPEST), -torch.inf)
        left = torch.arange(len(x), device=x.device)
        for weights, bias in self.slabs:
            logits = torch.cat([top[left], x[left] @ weights + bias], 1)  # [left, deepest + slab]
            top[left] = logits.topk(_DEEPEST).values
            left = left[best[left] > top[left, -1]]
            if not len(left):
                break
        # A tie counts against a token: a head that writes nothing puts nothing on top.
        above = (top[:, None, :] >= goal[:, :, None]).sum(-1)  # [row, id]
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
    require(model, "readout values shares", UNTOLD)
    forms = spellings(model.tokenizer, words)
    ids = sorted({i for form in forms for i in form})
    n, members = streams.shape[1:3]
    streams = streams.expand(model.n_layers, -1, -1, -1)
    found = torch.full((model.n_layers, n, members, model.n_heads, len(words)), _DEEPEST).byte()
    if ids:
        reader = _Reader(model, ids)
        for layer in tqdm(range(model.n_layers), desc="OV outputs", unit="layer"):
            # Rows are [n * member * head] from here on.
            writes = ov_writes(model, layer, streams[layer].flatten(0, 1)).flatten(0, 1)
            ranks = torch.cat([reader(part) for part in writes.split(chunk)]).cpu()  # [row, id]
            for word, form in enumerate(forms):
                if form:
                    best = ranks[:, [ids.index(i) for i in form]].min(-1).values
                    found[layer, ..., word] = best.byte().reshape(n, members, model.n_heads)
    return found.permute(0, 3, 1, 2, 4)  # [layer, head, n, member, word]


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
    run_blocks(model, torch.tensor(rows), [hook])
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
    present = present[present + step < total]  # members that stand somewhere and have a next
    true = by_shown[..., present, present + step].sum(-1)  # […]
    # The same in each random order: [draw, …].
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
    # The wanted word's rank at each place: [layer, head, n, member].
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
        hits = (ranks < TOP_K).flatten(2, 3).flatten(0, 1)  # [head, n * member, word]
        p = null_p(hits, shown.flatten(), step, null)  # [head]
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
    require(model, "readout", UNTOLD)
    bridge, final = model.bridge, observation.end[-1]
    ids = torch.tensor([i for i in vocabulary.ids if i is not None])

    def read(stream: torch.Tensor) -> torch.Tensor:
        return logits(model, bridge.ln_final(stream), ids)

    owed = []  # per layer [n, head, member]
    for layer in range(model.n_layers):
        # The final stream less one head's write: [n, head, d_model].
        without = final[:, None] - head_writes(model, layer, observation.z[layer])
        owed.append(read(final)[:, None] - read(without))
    owed = torch.stack(owed).transpose(1, 2).cpu()  # [layer, head, n, member]
    found = {}
    columns = {"next": prompts.answer_ids, "last": prompts.last_ids}
    wanted = {k: (v[:, None] == ids).int().argmax(-1) for k, v in columns.items()}  # [n] each
    others = torch.ones(len(prompts), len(ids))  # [n, member]: 1 but for the answer and the last
    for column in wanted.values():
        others.scatter_(1, column[:, None], 0)
    rest = (owed * others).sum(-1) / others.sum(-1).clamp(min=1)  # their mean [layer, head, n]
    for name, column in wanted.items():
        index = column.expand(*owed.shape[:2], -1)[..., None]  # [layer, head, n, 1]
        found[name] = owed.gather(-1, index)[..., 0] - rest
    return found

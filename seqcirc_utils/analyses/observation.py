"""One pass over clean prompts, and what of it roles are read from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from seqcirc_utils.ablation.replay import run_blocks
from seqcirc_utils.analyses import patterns as weights
from seqcirc_utils.analyses.attention import (
    ATTENTION_EVIDENCE,
    SIZE_EVIDENCE,
    group_attention,
    key_groups,
    query_groups,
)
from seqcirc_utils.analyses.heads import head_writes
from seqcirc_utils.components import Component, components
from seqcirc_utils.models.capabilities import wiring
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.statistics import intervals


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
            attention, its write is added last. NaN before MLPs where that cannot be told.
        z: Heads at the end before the output projection ``[layer, n, head, d_head]``.
        sizes: Norm of what each head writes, averaged over a query group's positions
            ``[layer, head, n, query group]``; NaN where it cannot be told.
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

    def evidence(self) -> dict[str, torch.Tensor]:
        """Evidence of roles that this pass shows: column to ``[layer, head, n]``."""
        looks = {name: self.attended(*groups) for name, groups in ATTENTION_EVIDENCE.items()}
        return looks | {
            f"{name}_size": self.sizes[..., self.queries.index(query)]
            for name, query in SIZE_EVIDENCE.items()
        }

    def spreads(self) -> dict[str, float]:
        """What evenly spread attention would give in each column of attention evidence."""
        return {name: self.spread(*groups) for name, groups in ATTENTION_EVIDENCE.items()}

    def spread(self, query: str, *keys: str) -> float:
        """What evenly spread attention would give there."""
        columns = [self.keys.index(key) for key in keys]
        return self.uniform[self.queries.index(query), columns].sum().item()


@torch.no_grad()
def observe(model: Model, prompts: Prompts, batch: int = 32) -> Observation:
    """Run the model once and keep what roles are read from."""
    parts = [
        _observe(model, prompts[rows.tolist()])
        for rows in tqdm(torch.arange(len(prompts)).split(batch), desc="Observing", unit="batch")
    ]
    prompt_axis = {"attention": 2, "sizes": 2, "embedded": 0, "members": 1, "end": 1, "z": 1}
    whole = {name: torch.cat([p[name] for p in parts], axis) for name, axis in prompt_axis.items()}
    queries, keys = query_groups(prompts), key_groups(prompts)
    even = torch.ones(prompts.tokens.shape[1:] * 2).tril()  # [query, key]: all that is visible
    even = (even / even.sum(-1, keepdim=True)).expand(len(prompts), 1, -1, -1)
    uniform = group_attention(even, _stacked(queries), _stacked(keys))[0].mean(0)
    return Observation(queries=list(queries), keys=list(keys), uniform=uniform, **whole)


def _stacked(groups: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(groups.values()))  # [group, …]


def _observe(model: Model, prompts: Prompts) -> dict[str, torch.Tensor]:
    """One pass: the tensors of :class:`Observation`."""
    queries, keys = _stacked(query_groups(prompts)), _stacked(key_groups(prompts))
    row, where = torch.arange(len(prompts))[:, None], prompts.member_positions  # [n, member]
    between, layers = wiring(model).between, range(model.n_layers)
    seen: dict[tuple[str, int], torch.Tensor] = {}
    hooks: list[tuple[str, Callable]] = []

    def keep(name: str, layer: int, at: str, reduce: Callable) -> None:
        def act(value: torch.Tensor, hook: Any) -> None:
            seen[name, layer] = reduce(value)

        hooks.append((f"blocks.{layer}.{at}", act))

    def at_end(value: torch.Tensor) -> torch.Tensor:
        return value[:, -1].clone()

    def at_members(value: torch.Tensor) -> torch.Tensor:
        return value[row, where]

    def attended(pattern: torch.Tensor) -> torch.Tensor:
        return group_attention(pattern.cpu(), queries, keys)

    for i in layers:
        keep("attention", i, "attn.hook_pattern", attended)
        keep("z", i, "attn.hook_z", at_end)
        keep("sizes", i, "attn.hook_z", partial(_sizes, model, i, queries))
        keep("members", i, "hook_in", at_members)
        keep("before", i, "hook_in", at_end)
        keep("middle", i, "hook_resid_mid" if between[i] else "hook_mlp_out", at_end)
        keep("after", i, "hook_out", at_end)
    keep("embedded", 0, "hook_out", at_members)
    run_blocks(model, prompts.tokens, hooks)
    for i in layers:
        if "between" in wiring(model).lacks:
            seen["middle", i].fill_(torch.nan)
        elif not between[i]:
            seen["middle", i] = seen["after", i] - seen["middle", i]
    ends = [seen[name, i] for i in layers for name in ("before", "middle")]
    found = {
        name: torch.stack([seen[name, i] for i in layers])
        for name in ("attention", "members", "z", "sizes")
    }
    end = torch.stack([*ends, seen["after", layers[-1]]])
    return found | {"end": end, "embedded": seen["embedded", 0]}


def _sizes(model: Model, layer: int, queries: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Norm of what heads write for ``z`` ``[n, pos, head, d_head]``: ``[head, n, group]``."""
    share = queries / queries.sum(-1, keepdim=True).clamp(min=1)  # [group, n, pos]
    if "shares" in wiring(model).lacks:
        return torch.full((z.shape[2], z.shape[0], len(queries)), torch.nan)
    if "heads" in wiring(model).lacks:
        writes = head_writes(model, layer, z.flatten(0, 1))  # [n * pos, head, d_model]
        norms = writes.norm(dim=-1).unflatten(0, z.shape[:2]).permute(2, 0, 1)  # [head, n, pos]
    else:  # |z W|² = z W Wᵀ zᵀ, which needs no [n, pos, head, d_model]
        weights = model.bridge.blocks[layer].attn.W_O * wiring(model).attention[layer]
        squared = torch.einsum("nphd,hde,hfe,nphf->hnp", z, weights, weights, z)
        norms = squared.clamp(min=0).sqrt()  # [head, n, pos]
    return torch.einsum("hnp,gnp->hng", norms.cpu(), share)


def attention_table(
    model: Model, observation: Observation, heads: Sequence[str], seed: int
) -> pd.DataFrame:
    """Attention between all groups, with 95% intervals over prompts, for some heads (one or more).

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
    return pd.concat(rows, ignore_index=True)


@torch.no_grad()
def patterns(model: Model, prompt: Prompts, heads: Sequence[str]) -> dict[str, torch.Tensor]:
    """Whole attention patterns of some heads on one prompt: name to ``[query, key]``."""
    found = weights.patterns(model, prompt[[0]], map(Component.parse, heads))[0]
    return dict(zip(heads, found, strict=True))

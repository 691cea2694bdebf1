"""One pass over clean prompts, and what of it roles are read from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from seqcirc_utils.analyses.attention import (
    ATTENTION_EVIDENCE,
    group_attention,
    key_groups,
    query_groups,
)
from seqcirc_utils.analyses.heads import _SO, head_writes
from seqcirc_utils.components import Component, components
from seqcirc_utils.models.capabilities import require, wiring
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

"""Edges of the whole model: what replacing each write, for one reader alone, is estimated to cost.

    estimate = (clean - corrupted write) * slope of the metric at the reader's input

Readers are the q, k and v of every head, every MLP and the logits, each before its norm; what they
read is the embedding and every component below. So all edges are one product of the writers'
differences and the readers' slopes, layer by layer, and stay arrays: ``[writer, reader]``, in the
order of the benchmark's files (:mod:`~seqcirc_utils.methods.mib_format`).
"""

from collections.abc import Sequence

import numpy as np
import torch

from seqcirc_utils.ablation.edge_replay import attend
from seqcirc_utils.ablation.engine import Replay
from seqcirc_utils.ablation.replay import Activations
from seqcirc_utils.components import SOURCES, Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.methods.mib_format import Sizes
from seqcirc_utils.methods.registry import steps
from seqcirc_utils.methods.slopes import Pairs
from seqcirc_utils.models.capabilities import before, require, wiring
from seqcirc_utils.models.loading import Model

_SO = "a write cannot be replaced for one reader alone: edges do not apply. Nodes do."


def sizes_of(model: Model) -> Sizes:
    """The model's shape, with the names and the order of writers and readers."""
    return Sizes(model.n_layers, model.n_heads, model.facts.d_model)


def edge_scores(pairs: Pairs, n_steps: int = 0) -> np.ndarray:
    """Estimates for every edge ``[writer, reader]``, means over prompts; NaN where there is none.

    Args:
        pairs: The prompts and the metric.
        n_steps: 0: slopes of the clean run (edge attribution patching, Syed et al., 2023); else
            their mean at so many points on the way from corrupted to clean embedding (EAP-IG
            inputs, Hanna et al., 2024).

    Raises:
        UserError: for a model whose components do not write into, and read from, one sum.
    """
    model = pairs.clean.model
    require(model, "heads in_turn", _SO)
    if not pairs.clean.run.by_parts:
        raise UserError(f"{model.facts.title} does not run part by part on these prompts, so {_SO}")
    changes = writes(pairs)  # [writer, n, pos, d_model]
    total = torch.zeros(len(changes), len(sizes_of(model).readers))
    if n_steps:
        for place, weight in steps(n_steps):
            streams = _streams(pairs, pairs.between(place))
            _add(pairs, changes, streams, weight / changes.shape[1], total)
    else:
        own, write = pairs.clean.run.residual, pairs.clean.run.activations.mlp
        recorded = [(x, y - w) for x, y, w in zip(own, own[1:], write, strict=False)]
        _add(pairs, changes, [*recorded, (own[-1], own[-1])], 1 / changes.shape[1], total)
    found = np.full(total.shape, np.nan, dtype=np.float32)
    there = tuple(np.array(sizes_of(model).edges()).T)
    found[there] = total.numpy()[there]
    return found


@torch.no_grad()
def writes(pairs: Pairs) -> torch.Tensor:
    """Clean minus corrupted writes into the stream ``[writer, n, pos, d_model]``."""
    model, change = pairs.clean.model, pairs.difference
    heads = model.n_heads
    first = pairs.between(1.0) - pairs.between(0.0)
    found = first.new_empty(1 + len(components(model)), *first.shape)
    found[0] = first
    for layer in range(model.n_layers):
        begin = 1 + layer * (heads + 1)
        weights = model.bridge.blocks[layer].attn.W_O * wiring(model).attention[layer]
        found[begin : begin + heads] = torch.einsum("nphd,hde->hnpe", change.z[layer], weights)
        found[begin + heads] = change.mlp[layer]
    return found


Streams = list[tuple[torch.Tensor, torch.Tensor]]
"""What attention, then the MLP of each layer reads; at last, twice, what the logits read."""


@torch.no_grad()
def _streams(pairs: Pairs, embedding: torch.Tensor) -> Streams:
    """A run on another embedding ``[n, pos, d_model]``."""
    run, stream, found = pairs.clean.run, embedding, []
    for layer in range(pairs.clean.model.n_layers):
        middle = stream + run.attention(layer, stream)
        found.append((stream, middle))
        stream = middle + run.mlp(layer, middle)
    return [*found, (stream, stream)]


@torch.no_grad()
def _add(
    pairs: Pairs, changes: torch.Tensor, streams: Streams, weight: float, total: torch.Tensor
) -> None:
    """Add one run's products to ``total`` ``[writer, reader]``, from the last layer down."""
    run, model = pairs.clean.run, pairs.clean.model
    stream, _ = streams[-1]

    def product(writers: int, slope: torch.Tensor) -> torch.Tensor:
        """Changes of the first writers times slopes ``[reader, n, p, d_model]``."""
        some = changes[:writers, :, -slope.shape[2] :]
        return weight * (some.flatten(1) @ slope.flatten(1).T).cpu()

    with torch.enable_grad():
        end = stream[:, -1:].clone().requires_grad_()
        (last,) = torch.autograd.grad(pairs.metric(pairs.clean, end[None]).sum(), end)
    total[:, -1] += product(len(changes), last[None])[:, 0]
    slope = torch.zeros_like(stream)  # of the metric at the present stream
    slope[:, -1:] = last
    heads = model.n_heads
    for layer in reversed(range(model.n_layers)):
        stream, middle = streams[layer]
        writers, readers = 1 + layer * (heads + 1), layer * (3 * heads + 1)
        with torch.enable_grad():
            read = middle.detach().requires_grad_()
            (own,) = torch.autograd.grad(run.mlp(layer, read), read, slope)
        total[: writers + heads, readers + 3 * heads] += product(writers + heads, own[None])[:, 0]
        slope = slope + own
        each = _attention_slopes(pairs, layer, stream, slope)  # [3 * head, n, pos, d_model]
        total[:writers, readers : readers + 3 * heads] += product(writers, each)
        slope = slope + each.sum(0)


def _projected(pairs: Pairs, layer: int, stream: torch.Tensor) -> dict[str, torch.Tensor]:
    """q, k and v of a layer ``[n, pos, head, d_head]`` (of k and v as many as there are)."""
    block = pairs.clean.model.bridge.blocks[layer]
    normed, found = before(block, "ln1", stream), {}
    for source in SOURCES:
        weight, bias = (getattr(block.attn, f"{kind}_{source.upper()}") for kind in "Wb")
        found[source] = torch.einsum("npd,hde->nphe", normed, weight)
        if bias is not None:
            found[source] = found[source] + bias
    return found


def _attention_slopes(
    pairs: Pairs, layer: int, stream: torch.Tensor, slope: torch.Tensor
) -> torch.Tensor:
    """Slopes at what each q, k and v reads ``[3 * head, n, pos, d_model]``.

    Heads that share keys and values get a run of the attention each: an edge is one head's own.

    Args:
        pairs: The prompts.
        layer: The layer.
        stream: What its attention reads ``[n, pos, d_model]``.
        slope: Of the metric, at what its attention adds ``[n, pos, d_model]``.
    """
    run, model = pairs.clean.run, pairs.clean.model
    block, heads = model.bridge.blocks[layer], model.n_heads
    leaves = _projected(pairs, layer, stream)
    shared = heads // leaves["k"].shape[2]
    n, pos = stream.shape[:2]
    with torch.enable_grad():
        leaves = {  # [n, run, pos, head, d_head]; q has one for all runs
            s: v.detach()[:, None].repeat(1, 1 if s == "q" else shared, 1, 1, 1).requires_grad_()
            for s, v in leaves.items()
        }
        wide = {s: v.expand(-1, shared, -1, -1, -1).flatten(0, 1) for s, v in leaves.items()}
        z = attend(run, layer, wide).reshape(n, shared, pos, heads, -1)
        # Head h is number h % shared of those with its keys.
        own = torch.stack([z[:, h % shared, :, h] for h in range(heads)], 2)
        found = torch.autograd.grad(run.heads(layer, own), list(leaves.values()), slope)
    normed = []
    for source, one in zip(SOURCES, found, strict=True):
        weights = getattr(block.attn, f"W_{source.upper()}")  # [head or fewer, d_model, d_head]
        each = one[:, 0] if source == "q" else one.permute(0, 2, 3, 1, 4).flatten(2, 3)
        weights = weights.repeat_interleave(heads // len(weights), 0)
        normed.append(torch.einsum("nphe,hde->hnpd", each, weights))
    back = torch.cat(normed)  # [3 * head, n, pos, d_model], behind the norm
    if "ln1" not in block._modules:
        return back
    with torch.enable_grad():
        copies = stream.detach().expand(back.shape).flatten(0, 1).requires_grad_()
        (slopes,) = torch.autograd.grad(before(block, "ln1", copies), copies, back.flatten(0, 1))
    return slopes.reshape(back.shape)


def exact_edges(pairs: Pairs, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """What the metric loses when one reader alone reads the corrupted write, exactly.

    Args:
        pairs: The prompts and the metric.
        edges: Places ``(writer, reader)`` of edges.

    Returns:
        Mean losses ``[edge]``.
    """
    changes, layers = writes(pairs), pairs.clean.model.n_layers
    whole = _metric(pairs, pairs.clean.run.residual[-1][:, -1:])
    found = []
    for writer, reader in edges:
        place = divmod(reader, 3 * pairs.clean.model.n_heads + 1)
        if place[0] == layers:
            value = _metric(pairs, (pairs.clean.run.residual[-1] - changes[writer])[:, -1:])
        else:
            value = _patched(pairs, *place, changes[writer])
        found.append((whole - value).mean().item())
    return np.array(found)


@torch.no_grad()
def _metric(pairs: Pairs, stream: torch.Tensor) -> torch.Tensor:
    return pairs.metric(pairs.clean, stream[None])[0].cpu()


@torch.no_grad()
def _patched(pairs: Pairs, layer: int, column: int, change: torch.Tensor) -> torch.Tensor:
    """The metric ``[n]`` when one reader of a layer reads the stream less ``change``."""
    run, heads = pairs.clean.run, pairs.clean.model.n_heads
    z, mlp = run.activations.z, run.activations.mlp
    source, head = divmod(column, heads)
    if column == 3 * heads:
        component = Component(layer, None)
        middle = run.residual[layer] + run.attention(layer, run.residual[layer])
        mlp = torch.cat([mlp[:layer], run.mlp(layer, middle - change)[None], mlp[layer + 1 :]])
    else:
        component = Component(layer, head)
        own = _projected(pairs, layer, run.residual[layer])
        new = _projected(pairs, layer, run.residual[layer] - change)
        both = own | {SOURCES[source]: new[SOURCES[source]]}
        # Only this head's result is taken, so that others read what they read.
        z = torch.cat([z[:layer], attend(run, layer, both)[None], z[layer + 1 :]])
    runner = Replay(run, Activations(z, mlp))
    final = runner.replay([runner.masks([component])], run.residual[layer], layer)
    return pairs.metric(pairs.clean, final)[0].cpu()

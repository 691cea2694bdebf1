"""The one replay: recorded prompts run again with any set of components replaced.

A component is a head (its ``hook_z``, before the output projection) or an MLP (its write into the
residual stream). A replaced component's value comes from :class:`Activations`: the mean over
corrupted prompts (mean ablation, the paper's), nothing (zero ablation), another run of the same
prompts (resample ablation, activation patching), or a multiple of their own (an edit).

Why it is fast, and still exact:

- nothing below the first replaced component changes, so a candidate starts there, from the residual
  stream that an earlier run left;
- what is replaced at all positions is not computed;
- no position reads a later one, so before the first that changes, MLPs are not computed;
- above the last head that still reads other positions, only the positions asked for are computed.

``tests/ablation/test_ablation.py`` holds the results to whole passes with plain hooks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm

from seqcirc_utils.ablation.replay import Activations, Run, hook_name
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models.capabilities import require
from seqcirc_utils.models.loading import Model

Masks = tuple[torch.Tensor, torch.Tensor]
"""A set of components: heads ``[layer, head]``, MLPs ``[layer]``."""
Trace = dict[str, torch.Tensor]
"""Values by the names of the model's hooks."""
_Swap = tuple[torch.Tensor, torch.Tensor]  # where [candidate, n, pos, …], and by what
TOKENS = {"cpu": 1024, "gpu": 4096}
"""Tokens of one batch, unless a number of rows is given: more take memory and save no time."""


def fitting(model: Model, sizes: Mapping[str, int]) -> int:
    """The size of a batch for the model's device: ``cpu``, or any other (``gpu``)."""
    return sizes["cpu" if model.device.type == "cpu" else "gpu"]


def rows_at_once(model: Model, length: int) -> int:
    """How many rows (candidates times prompts) of so many positions make a batch."""
    return max(1, fitting(model, TOKENS) // length)


class Replay:
    """Recorded prompts, to be run again with parts replaced.

    Args:
        run: The run of the prompts.
        replacement: What replaced components write: ``n`` equal to the run's, or 1.
        last: How many positions at the end are asked for.
        max_rows: Rows (candidates times prompts) of one batch: bounds the memory; ``None``: as
            :func:`rows_at_once`.

    Raises:
        UserError: for a replacement that fits neither the prompts nor the model, or a model whose
            logits are not made by final norm and unembedding.
    """

    def __init__(
        self, run: Run, replacement: Activations, *, last: int = 1, max_rows: int | None = None
    ) -> None:
        require(
            run.model, "readout", "what its components do to a logit difference is not known here."
        )
        own, new = (run.model.n_layers, *run.z_shape), tuple(replacement.z.shape)
        if new[0] != own[0] or new[2:] != own[2:]:
            raise UserError(
                f"the replacement has shape {new}, the prompts need {own}: both must "
                "come from this model and have prompts of one length."
            )
        if new[1] not in (1, own[1]):
            raise UserError(f"the replacement holds {new[1]} prompts: 1 or {own[1]} fit.")
        self.model, self.run, self.replacement = run.model, run, replacement
        self.last = last
        self.max_rows = max_rows or rows_at_once(run.model, own[2])

    @property
    def step(self) -> int:
        """How many candidates make a batch."""
        return max(1, self.max_rows // self.run.residual.shape[1])

    def masks(self, names: Iterable[Component]) -> Masks:
        """A set of components as boolean masks.

        Raises:
            UserError: for an unknown component.
        """
        heads = torch.zeros(self.model.n_layers, self.model.n_heads, dtype=torch.bool)
        mlps = torch.zeros(self.model.n_layers, dtype=torch.bool)
        for component in names:
            layer, head = component
            if not (0 <= layer < len(heads) and (head is None or 0 <= head < heads.shape[1])):
                known = map(str, components(self.model))
                raise unknown("component", str(component), known)
            if head is None:
                mlps[layer] = True
            else:
                heads[layer, head] = True
        return heads, mlps

    @torch.no_grad()
    def each(
        self,
        candidates: Sequence[Iterable[Component]],
        read: Callable[[torch.Tensor], Iterable[torch.Tensor]],
        *,
        positions: Sequence[torch.Tensor | None] | None = None,
        progress: str | None = None,
    ) -> list[torch.Tensor]:
        """What is read off the last stream with each candidate's components replaced.

        Args:
            candidates: Sets of components; each set is replaced together.
            read: From the last streams of a batch ``[candidate, n, last, d_model]`` to tensors
                ``[candidate, …]``.
            positions: Per candidate, the positions to replace ``[n, pos]`` (or ``None``: all).
            progress: Label of a progress bar.

        Returns:
            The tensors of all candidates; without candidates, empty ones.
        """
        if not candidates:  # nothing of the right shape and type
            return [value[:0] for value in read(self.run.residual[-1:, :, -self.last :])]
        candidates = [list(candidate) for candidate in candidates]
        masks = [self.masks(candidate) for candidate in candidates]
        where = [None] * len(candidates) if positions is None else list(positions)
        layers, parts = self.model.n_layers, self._parts()
        since = [0 if p is None else int(p.any(0).int().argmax()) for p in where]
        starts = [min((c.layer for c in candidate), default=layers) for candidate in candidates]

        def batch(rows: list[int]) -> Iterable[torch.Tensor]:
            start, some = starts[rows[0]], [masks[i] for i in rows]
            streams = []
            for prompts, part in parts:
                own = [p if (p := where[i]) is None else p[prompts] for i in rows]
                stream = part.run.residual[start]
                streams.append(part.replay(some, stream, start, own, min(since[i] for i in rows)))
            return read(torch.cat(streams, 1))

        return scheduled(starts, self.step, batch, progress)

    def _parts(self) -> list[tuple[slice, "Replay"]]:
        """Which prompts run together, and a replay of them: no more than a batch holds."""
        n, most = len(self.run.tokens), self.max_rows
        if n <= most:
            return [(slice(None), self)]
        parts = [range(i, min(i + most, n)) for i in range(0, n, most)]
        options = {"last": self.last, "max_rows": most}
        return [
            (slice(p.start, p.stop), Replay(self.run[p], self.replacement[p], **options))
            for p in parts
        ]

    def replay(
        self,
        masks: Sequence[Masks],
        residual: torch.Tensor,
        start: int,
        positions: Sequence[torch.Tensor | None] | None = None,
        since: int = 0,
        trace: Trace | None = None,
    ) -> torch.Tensor:
        """Run blocks ``start`` and up with each candidate's components replaced.

        Args:
            masks: What each candidate replaces, from :meth:`masks`.
            residual: What enters block ``start`` ``[n, pos, d_model]`` (the last positions alone
                will do where no candidate keeps a head from there on).
            start: The first block to run.
            positions: Per candidate, the positions to replace ``[n, pos]`` (or ``None``: all).
            since: The first position at which anything is replaced, or ``residual`` is not as
                recorded.
            trace: Filled, for a single candidate, with the stream that enters each block and what
                its components compute.

        Returns:
            The last block's output at the last positions ``[candidate, n, last, d_model]``.
        """
        device, count = residual.device, len(masks)
        positions = [None] * count if positions is None else positions
        some = torch.tensor([p is not None for p in positions])
        where = torch.ones(count, *self.run.residual.shape[1:3], dtype=torch.bool, device=device)
        for i in some.nonzero().flatten().tolist():
            where[i] = positions[i].to(device)
        heads = torch.stack([m[0] for m in masks])  # [candidate, layer, head]
        mlps = torch.stack([m[1] for m in masks])  # [candidate, layer]
        attends = ~heads.all(-1) | some[:, None]  # [candidate, layer]: is there work to do?
        computes = ~mlps | some[:, None]
        readers = attends.any(0).nonzero().flatten().tolist()
        last_reader = max(readers, default=-1) if self.run.by_parts else self.model.n_layers
        stream = residual.expand(count, *residual.shape)
        if start > last_reader:
            stream = stream[:, :, -self.last :]
        for layer in range(start, self.model.n_layers):
            if trace is not None:
                trace[hook_name(layer, "in")] = stream[0]
            swaps: dict[str, _Swap] = {}
            if heads[:, layer].any():
                mask = where[..., None] & heads[:, layer].to(device)[:, None, None, :]
                swaps["z"] = (mask[..., None], self.replacement.z[layer])
            if mlps[:, layer].any():
                mask = where & mlps[:, layer].to(device)[:, None, None]
                swaps["mlp"] = (mask[..., None], self.replacement.mlp[layer])
            if not self.run.by_parts:
                stream = self._block(layer, stream, swaps, trace)
                continue
            stream = stream + self._attention(layer, stream, swaps, attends[:, layer], trace)
            if layer >= last_reader:
                stream = stream[:, :, -self.last :]
            first = self.run.residual.shape[2] - stream.shape[2]  # position of its first column
            same = max(0, since - first)
            stream = stream[:, :, same:]
            stream = stream + self._mlp(layer, stream, swaps, computes[:, layer], trace)
            if same:
                recorded = self.run.residual[layer + 1][:, first : first + same]
                stream = torch.cat([recorded.expand(count, *recorded.shape), stream], 2)
        return stream[:, :, -self.last :]

    def _attention(
        self,
        layer: int,
        stream: torch.Tensor,
        swaps: dict[str, _Swap],
        attends: torch.Tensor,
        trace: Trace | None,
    ) -> torch.Tensor:
        """What attention adds to ``[candidate, n, p, d_model]``."""

        def act(z: torch.Tensor) -> torch.Tensor:  # [rows, p, head, d_head]
            if trace is not None:
                trace[hook_name(layer, "z")] = z
            split = z.unflatten(0, (-1, stream.shape[1]))
            return _swapped(split, swaps.get("z"), attends).flatten(0, 1)

        def attend(own: torch.Tensor) -> torch.Tensor:
            return self.run.attention(layer, own.flatten(0, 1), act).reshape(own.shape)

        def new() -> torch.Tensor:
            return self.run.heads(layer, self.replacement.z[layer])

        return _where_needed(stream, attends, new, attend)

    def _mlp(
        self,
        layer: int,
        stream: torch.Tensor,
        swaps: dict[str, _Swap],
        computes: torch.Tensor,
        trace: Trace | None,
    ) -> torch.Tensor:
        """What the MLP adds to ``[candidate, n, p, d_model]``."""

        def compute(own: torch.Tensor) -> torch.Tensor:
            write = self.run.mlp(layer, own.flatten(0, 1))
            if trace is not None:
                trace[hook_name(layer, "mlp")] = write
            return _swapped(write.reshape(own.shape), swaps.get("mlp"), computes)

        return _where_needed(stream, computes, lambda: self.replacement.mlp[layer], compute)

    def _block(
        self, layer: int, stream: torch.Tensor, swaps: dict[str, _Swap], trace: Trace | None
    ) -> torch.Tensor:
        """A whole block, for architectures whose parts do not simply add up."""
        everyone = torch.ones(len(stream), dtype=torch.bool)

        def act(value: torch.Tensor, hook: Any, kind: str) -> torch.Tensor:
            if trace is not None:
                trace[hook_name(layer, kind)] = value
            split = value.unflatten(0, stream.shape[:2])
            return _swapped(split, swaps.get(kind), everyone).reshape(value.shape)

        hooks = [(hook_name(layer, kind), partial(act, kind=kind)) for kind in ("z", "mlp")]
        return self.run.block(layer, stream.flatten(0, 1), hooks).reshape(stream.shape)


def scheduled(
    starts: Sequence[Any],
    step: int,
    batch: Callable[[list[int]], Iterable[torch.Tensor]],
    progress: str | None = None,
) -> list[torch.Tensor]:
    """Run candidates in batches of those that start at one place.

    Args:
        starts: Where each candidate starts; places can be sorted.
        step: The most candidates in a batch.
        batch: From the numbers of some candidates to tensors ``[candidate, …]``.
        progress: Label of a progress bar.

    Returns:
        The tensors of all candidates, in their order.
    """
    order, parts = sorted(range(len(starts)), key=starts.__getitem__), []
    with tqdm(total=len(starts), desc=progress, unit="set", disable=progress is None) as bar:
        for _, group in groupby(order, key=starts.__getitem__):
            rows = list(group)
            for i in range(0, len(rows), step):
                parts.append(batch(rows[i : i + step]))
                bar.update(len(rows[i : i + step]))
    back = torch.tensor(order).argsort()
    return [torch.cat(values)[back] for values in zip(*parts, strict=True)]


def _where_needed(
    stream: torch.Tensor,
    chosen: torch.Tensor,
    new: Callable[[], torch.Tensor],
    compute: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """What a part adds: computed for the chosen candidates, its replacement for the others."""
    if chosen.all():
        return compute(stream)
    constant = new()[:, -stream.shape[2] :]  # [1 or n, p, d_model]
    if not chosen.any():
        return constant
    rows = chosen.nonzero().flatten().to(stream.device)
    return constant.expand(stream.shape).index_copy(0, rows, compute(stream[rows]))


def _swapped(value: torch.Tensor, swap: _Swap | None, chosen: torch.Tensor) -> torch.Tensor:
    """``value`` of the chosen candidates ``[chosen, n, p, …]``, replaced where the mask says so."""
    if swap is None:
        return value
    (mask, new), p = swap, value.shape[2]
    mask = mask if chosen.all() else mask[chosen.to(mask.device)]
    return torch.where(mask[:, :, -p:], new[:, -p:], value)

"""The evaluator: scores with any set of components replaced, exactly and fast.

A component is a head (its ``hook_z``, before the output projection) or an MLP (its write into the
residual stream). A replaced component's value comes from :class:`Activations`: the mean over
corrupted prompts (mean ablation, the paper's), nothing (zero ablation), or another run of the same
prompts (resample ablation, activation patching).

Why it is fast, and still exact:

- nothing below the first replaced component changes, so a candidate starts there, from the residual
  stream that an earlier run left;
- what is replaced at all positions is not computed;
- above the last head that still reads other positions, only the final position is computed;
- only the final position is unembedded, and for a logit difference only two tokens of it.

``tests/ablation/test_ablation.py`` holds the results to whole passes with plain hooks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm
from transformer_lens.tools.analysis import logit_readout

from seqcirc_utils.ablation.replay import Activations, _hook, record
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models.capabilities import added, before, first, require
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.scores import Scores

_Swap = tuple[torch.Tensor, torch.Tensor]  # where [candidate, n, pos, …], and by what


class Evaluator:
    """Scores one prompt set with any set of components replaced.

    Args:
        model: The model, weights unprocessed.
        prompts: Prompts to run; answers and last members are read from here.
        replacement: What replaced components write: ``n`` equal to ``len(prompts)``, or 1.
        answers: Prompts that say which tokens are answer and last member, row by row, when not
            ``prompts`` itself (a corrupted run is scored by its clean partner's answer).
        max_rows: Rows (candidates times prompts) of one batch: bounds the memory.

    Raises:
        UserError: when there are no prompts, or the replacement fits neither the prompts nor the
            model.
    """

    def __init__(
        self,
        model: Model,
        prompts: Prompts,
        replacement: Activations,
        *,
        answers: Prompts | None = None,
        max_rows: int = 128,
    ) -> None:
        if not len(prompts):
            raise UserError("there are no prompts to evaluate: at least one is needed.")
        self.wiring = require(
            model, "readout", "what its components do to a logit difference is not known here."
        )
        self.model = model
        self.prompts = prompts
        self.answers = prompts if answers is None else answers
        self.max_rows = max_rows
        self.run = record(model, prompts)
        own = self.run.activations.z.shape
        if replacement.z.shape[0] != own[0] or replacement.z.shape[2:] != own[2:]:
            raise UserError(
                f"the replacement has shape {tuple(replacement.z.shape)}, the prompts need "
                f"{tuple(own)}: both must come from this model and have prompts of one length."
            )
        if replacement.z.shape[1] not in (1, len(prompts)):
            raise UserError(
                f"the replacement holds {replacement.z.shape[1]} prompts: 1 or {len(prompts)} fit."
            )
        self.replacement = replacement
        final = self._unembed(self.run.residual[-1])
        self._reference = final.float().log_softmax(-1)
        self.intact = Scores.read(final, self.answers, self._reference)
        ids = torch.stack([self.answers.answer_ids, self.answers.last_ids]).to(final.device)
        self._directions = model.bridge.W_U[:, ids].permute(1, 2, 0)  # [2, n, d_model]
        self._biases = model.bridge.b_U[ids]
        self._by_parts = "in_turn" not in self.wiring.lacks and self._parts_add_up()

    def masks(self, names: Iterable[Component]) -> tuple[torch.Tensor, torch.Tensor]:
        """A set of components as boolean masks: heads ``[layer, head]``, MLPs ``[layer]``."""
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

    def replaced(
        self,
        candidates: Sequence[Iterable[Component]],
        *,
        positions: Sequence[torch.Tensor | None] | None = None,
        progress: str | None = None,
    ) -> Scores:
        """Scores with each candidate's components replaced.

        Args:
            candidates: Sets of components; each set is replaced together.
            positions: Per candidate, the positions to replace ``[n, pos]`` (or ``None``: all).
            progress: Label of a progress bar.

        Returns:
            Scores ``[candidate, n]``.
        """
        candidates = [list(candidate) for candidate in candidates]
        positions = [None] * len(candidates) if positions is None else list(positions)
        layers = self.model.n_layers
        starts = [min((c.layer for c in candidate), default=layers) for candidate in candidates]
        step = max(1, self.max_rows // len(self.prompts))
        batches = [
            chunk.tolist()
            for start in sorted(set(starts))
            for chunk in torch.tensor([i for i, s in enumerate(starts) if s == start]).split(step)
        ]
        found: dict[int, Scores] = {}
        bar = tqdm(total=len(candidates), desc=progress, unit="set", disable=progress is None)
        with bar, torch.no_grad():
            for rows in batches:
                stream = self.replay(
                    [self.masks(candidates[i]) for i in rows],
                    self.run.residual[starts[rows[0]]],
                    starts[rows[0]],
                    [positions[i] for i in rows],
                )
                scores = Scores.read(self._unembed(stream), self.answers, self._reference)
                for i, row in enumerate(rows):
                    found[row] = scores[i : i + 1]
                bar.update(len(rows))
        return Scores.concatenate([found[i] for i in range(len(candidates))])

    def kept(
        self, circuits: Sequence[Iterable[Component]], *, progress: str | None = None
    ) -> Scores:
        """Scores of circuits: every component outside each of the sets is replaced."""
        everything = set(components(self.model))
        wanted = [set(circuit) for circuit in circuits]
        for circuit in wanted:
            self.masks(circuit)  # refuses unknown components
        return self.replaced([everything - circuit for circuit in wanted], progress=progress)

    def replay(
        self,
        masks: Sequence[tuple[torch.Tensor, torch.Tensor]],
        residual: torch.Tensor,
        start: int,
        positions: Sequence[torch.Tensor | None] | None = None,
        trace: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Run blocks ``start`` and up with each candidate's components replaced.

        Args:
            masks: What each candidate replaces, from :meth:`masks`.
            residual: What enters block ``start`` ``[n, pos, d_model]`` (the final position alone
                will do where no candidate keeps a head from there on).
            start: The first block to run.
            positions: Per candidate, the positions to replace ``[n, pos]`` (or ``None``: all).
            trace: Filled, for a single candidate, with the stream that enters each block and what
                its components compute, under the names of the model's hooks.

        Returns:
            The last block's output at the final position, or at all ``[candidate, n, p, d_model]``.
        """
        device = residual.device
        count, (n, pos) = len(masks), self.prompts.tokens.shape
        positions = [None] * count if positions is None else positions
        some = torch.tensor([p is not None for p in positions])
        where = torch.ones(count, n, pos, dtype=torch.bool, device=device)
        for i in some.nonzero().flatten().tolist():
            where[i] = positions[i].to(device)
        heads = torch.stack([m[0] for m in masks])
        mlps = torch.stack([m[1] for m in masks])
        attends = ~heads.all(-1) | some[:, None]  # [candidate, layer]: is there work to do?
        computes = ~mlps | some[:, None]
        readers = attends.any(0).nonzero().flatten().tolist() if self._by_parts else [len(mlps[0])]
        last_reader = max(readers, default=-1)
        stream = residual.expand(count, *residual.shape)
        if start > last_reader:
            stream = stream[:, :, -1:]
        for layer in range(start, self.model.n_layers):
            if trace is not None:
                trace[_hook(layer, "in")] = stream[0]
            swaps: dict[str, _Swap] = {}
            if heads[:, layer].any():
                mask = where[..., None] & heads[:, layer].to(device)[:, None, None, :]
                swaps["z"] = (mask[..., None], self.replacement.z[layer])
            if mlps[:, layer].any():
                mask = where & mlps[:, layer].to(device)[:, None, None]
                swaps["mlp"] = (mask[..., None], self.replacement.mlp[layer])
            if not self._by_parts:
                stream = self._block(layer, stream, swaps, trace)
                continue
            stream = stream + self._attention(layer, stream, swaps, attends[:, layer], trace)
            if layer >= last_reader:
                stream = stream[:, :, -1:]
            stream = stream + self._mlp(layer, stream, swaps, computes[:, layer], trace)
        return stream

    def difference(self, stream: torch.Tensor) -> torch.Tensor:
        """Logit differences ``[candidate, n]`` of last residuals ``[candidate, n, p, d_model]``."""
        bridge = self.model.bridge
        final = bridge.ln_final(stream[:, :, -1])
        both = torch.einsum("cnd,tnd->tcn", final, self._directions) + self._biases[:, None]
        answer, last = bridge.adapter.apply_output_logits_transform(both)
        return (answer - last).float()

    def estimate(self, removed: Iterable[Component] = (), rows: int = 0) -> dict[Component, float]:
        """First-order change of the mean logit difference if one more component were replaced.

        Attribution patching at a circuit: gradient of the logit difference, with ``removed``
        replaced, times what replacing each remaining component would change.

        Args:
            removed: Components replaced already.
            rows: How many prompts to use; all when 0.
        """
        masks = self.masks(removed)
        part = self if not rows or rows >= len(self.prompts) else self._first(rows)
        trace: dict[str, torch.Tensor] = {}
        with torch.enable_grad():
            stream = part.run.residual[0].detach().requires_grad_()
            final = part.replay([masks], stream, 0, trace=trace)
            total = part.difference(final).mean()
            names = [name for name in trace if not name.endswith("hook_in")]
            slopes = torch.autograd.grad(total, [trace[n] for n in names], allow_unused=True)
        slope = dict(zip(names, slopes, strict=True))
        heads, mlps = masks
        found = {}
        for layer in range(self.model.n_layers):
            for kind, gone in (("z", heads[layer]), ("mlp", mlps[layer : layer + 1])):
                name = _hook(layer, kind)
                if name not in trace or slope[name] is None:
                    effect = torch.zeros(len(gone))
                else:
                    own, to = trace[name].detach(), getattr(part.replacement, kind)[layer]
                    change = slope[name] * (to[:, -own.shape[1] :] - own)
                    # z: [n, pos, head, d_head]; MLP: [n, pos, d_model]
                    effect = change.sum((0, 1, 3)) if kind == "z" else change.sum()[None]
                for i, out in enumerate(gone.tolist()):
                    if not out:
                        component = Component(layer, i if kind == "z" else None)
                        found[component] = float(effect[i])
        return found

    def _first(self, rows: int) -> "Evaluator":
        """This evaluator on its first prompts, without running the model again."""
        part = object.__new__(Evaluator)
        new = self.replacement
        if new.z.shape[1] > 1:
            new = Activations(new.z[:, :rows], new.mlp[:, :rows])
        part.__dict__.update(
            vars(self),
            prompts=self.prompts[range(rows)],
            answers=self.answers[range(rows)],
            replacement=new,
            run=replace(self.run, residual=self.run.residual[:, :rows]),
            _directions=self._directions[:, :rows],
            _biases=self._biases[:, :rows],
        )
        return part

    def _attention(
        self,
        layer: int,
        stream: torch.Tensor,
        swaps: dict[str, _Swap],
        attends: torch.Tensor,
        trace: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        """What attention adds to ``[candidate, n, p, d_model]``; computed only where it attends."""
        block, new = self.model.bridge.blocks[layer], self.replacement.z[layer]
        post = partial(added, block, "ln1_post", self.wiring.attention[layer])
        if not attends.any():
            return post(block.attn.o(new.flatten(-2)))[:, -stream.shape[2] :]
        own = _rows(stream, attends)

        def act(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            z = inputs[0].reshape(own[..., 0].shape + new.shape[-2:])
            if trace is not None:
                z = trace[_hook(layer, "z")] = z.flatten(0, 1)
                z = z.reshape(own[..., 0].shape + new.shape[-2:])
            return (_swapped(z, swaps.get("z"), attends).reshape(inputs[0].shape),)

        # Torch's own hook: TransformerLens' context manager costs more than a short attention.
        handle = block.attn.o.register_forward_pre_hook(act)
        try:
            read = before(block, "ln1", own.flatten(0, 1))
            more = self.run.for_rows(self.run.attention_arguments[layer], len(read))
            out = block.attn(hidden_states=read, **more)
        finally:
            handle.remove()
        write = post(first(out)).reshape(own.shape)
        if attends.all():
            return write
        full = post(block.attn.o(new.flatten(-2))).expand(stream.shape)
        return full.index_copy(0, attends.nonzero().flatten().to(full.device), write)

    def _mlp(
        self,
        layer: int,
        stream: torch.Tensor,
        swaps: dict[str, _Swap],
        computes: torch.Tensor,
        trace: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        """What the MLP adds to ``[candidate, n, p, d_model]``; computed only where it is kept."""
        block, last = self.model.bridge.blocks[layer], stream.shape[2]
        new = self.replacement.mlp[layer][:, -last:]
        if not computes.any():
            return new
        own = _rows(stream, computes)
        out = first(block.mlp(before(block, "ln2", own.flatten(0, 1))))
        write = added(block, "ln2_post", self.wiring.mlp[layer], out)
        if trace is not None:
            trace[_hook(layer, "mlp")] = write
        write = _swapped(write.reshape(own.shape), swaps.get("mlp"), computes, last)
        if computes.all():
            return write
        rows = computes.nonzero().flatten().to(new.device)
        return new.expand(stream.shape).index_copy(0, rows, write)

    def _block(
        self,
        layer: int,
        stream: torch.Tensor,
        swaps: dict[str, _Swap],
        trace: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        """A whole block, for architectures whose parts do not simply add up."""
        everyone = torch.ones(len(stream), dtype=torch.bool)

        def act(value: torch.Tensor, hook: Any, kind: str) -> torch.Tensor:
            if trace is not None:
                trace[_hook(layer, kind)] = value
            split = value.reshape(*stream.shape[:2], *value.shape[1:])
            return _swapped(split, swaps.get(kind), everyone).reshape(value.shape)

        hooks = [(_hook(layer, kind), partial(act, kind=kind)) for kind in ("z", "mlp")]
        with self.model.bridge.hooks(fwd_hooks=hooks):
            return self.block(layer, stream.flatten(0, 1)).reshape(stream.shape)

    @torch.no_grad()
    def _parts_add_up(self) -> bool:
        """Whether the parts, run one by one, give these very prompts' streams."""
        everyone = torch.ones(1, dtype=torch.bool)
        for layer in range(self.model.n_layers):
            stream = self.run.residual[layer, :1][None]
            stream = stream + self._attention(layer, stream, {}, everyone, None)
            stream = stream + self._mlp(layer, stream, {}, everyone, None)
            if not torch.allclose(stream[0], self.run.residual[layer + 1, :1], 1e-4, 1e-3):
                return False
        return True

    def block(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run one block on a residual stream ``[rows, pos, d_model]``."""
        more = self.run.for_rows(self.run.block_arguments[layer], len(stream))
        return first(self.model.bridge.blocks[layer](stream, **more))

    def _unembed(self, stream: torch.Tensor) -> torch.Tensor:
        chunk = self.max_rows
        grad = torch.is_grad_enabled()
        final = stream[..., -1, :]
        return logit_readout(self.model.bridge, final, chunk_size=chunk, enable_grad=grad).values


def _swapped(
    value: torch.Tensor, swap: _Swap | None, chosen: torch.Tensor, last: int = 0
) -> torch.Tensor:
    """``value`` of the chosen candidates with replacements where the mask says so."""
    if swap is None:
        return value
    mask, new = swap
    return torch.where(_rows(mask, chosen)[:, :, -last:], new[:, -last:], value)


def _rows(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The chosen candidates' rows; no copy when all are chosen."""
    return values if chosen.all() else values[chosen.to(values.device)]

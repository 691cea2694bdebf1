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

``tests/test_ablation.py`` holds the results to whole passes with plain hooks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from tqdm import tqdm
from transformer_lens.tools.analysis import logit_readout

from seqcirc_utils.capabilities import added, before, first, require, wiring
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.metrics import Scores
from seqcirc_utils.models import Model
from seqcirc_utils.tasks import Prompts


class Component(NamedTuple):
    """A head (``4.10``: layer 4, head 10) or, with ``head=None``, an MLP (``mlp9``)."""

    layer: int
    head: int | None

    def __str__(self) -> str:
        return f"mlp{self.layer}" if self.head is None else f"{self.layer}.{self.head}"

    @classmethod
    def parse(cls, name: str) -> "Component":
        """The component of a name such as ``4.10`` or ``mlp9``."""
        try:
            if name.startswith("mlp"):
                return cls(int(name[3:]), None)
            layer, head = name.split(".")
            return cls(int(layer), int(head))
        except ValueError:
            raise UserError(
                f"unknown component {name!r}: heads are written like 4.10, MLPs like mlp9."
            ) from None


def components(model: Model) -> list[Component]:
    """Every component: layer by layer, heads and then the MLP."""
    heads = [*range(model.n_heads), None]
    return [Component(layer, head) for layer in range(model.n_layers) for head in heads]


@dataclass(frozen=True)
class Activations:
    """What every component wrote, on ``n`` prompts (``n = 1``: a mean).

    Attributes:
        z: Heads before the output projection ``[layer, n, pos, head, d_head]``.
        mlp: MLP writes ``[layer, n, pos, d_model]``.
    """

    z: torch.Tensor
    mlp: torch.Tensor

    def mean(self) -> "Activations":
        """The mean over prompts, position by position: mean ablation."""
        return Activations(self.z.mean(1, keepdim=True), self.mlp.mean(1, keepdim=True))

    def zero(self) -> "Activations":
        """Nothing at every position: zero ablation."""
        return Activations(torch.zeros_like(self.z[:, :1]), torch.zeros_like(self.mlp[:, :1]))


@dataclass(frozen=True)
class Run:
    """A run of the model kept for replay.

    Attributes:
        residual: The stream that enters each block, and the last one's output
            ``[layer + 1, n, pos, d_model]``.
        activations: What the components wrote.
        block_arguments: What else the model hands to each block (masks may differ by layer).
        attention_arguments: What else each block hands to its attention.
        row_axes: Arguments that hold something for each prompt, and along which axis.
    """

    residual: torch.Tensor
    activations: Activations
    block_arguments: list[dict[str, Any]]
    attention_arguments: list[dict[str, Any]]
    row_axes: dict[str, int]

    def for_rows(self, arguments: dict[str, Any], rows: int) -> dict[str, Any]:
        """Some block's arguments, recorded on one prompt, for so many."""
        found = dict(arguments)
        for name in self.row_axes.keys() & arguments.keys():
            value, axis = arguments[name], self.row_axes[name]
            if value.shape[axis] == 1:
                shape = [-1] * value.ndim
                shape[axis] = rows
                found[name] = value.expand(shape)
            else:  # Bloom: prompts and heads share an axis
                found[name] = torch.cat([value] * rows, axis)
        return found


def _hook(layer: int, kind: str) -> str:
    return {
        "in": f"blocks.{layer}.hook_in",
        "out": f"blocks.{layer}.hook_out",
        "z": f"blocks.{layer}.attn.hook_z",
        "mlp": f"blocks.{layer}.hook_mlp_out",
        "q": f"blocks.{layer}.attn.hook_q",
        "k": f"blocks.{layer}.attn.hook_k",
        "v": f"blocks.{layer}.attn.hook_v",
    }[kind]


class Tokens(Protocol):
    """All that recording reads of prompts."""

    @property
    def tokens(self) -> torch.Tensor:
        """Token ids ``[n, pos]``."""


@torch.no_grad()
def record(model: Model, prompts: Tokens, batch: int = 64) -> Run:
    """Run the model once and keep what replay and replacement need."""
    wiring(model)  # refuses a model without heads and an MLP in every layer
    bridge, last = model.bridge, model.n_layers - 1
    names = {_hook(layer, kind) for layer in range(last + 1) for kind in ("in", "z", "mlp")}
    names.add(_hook(last, "out"))
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def keep(value: torch.Tensor, hook: Any, name: str) -> None:
        kept[name].append(value.clone())

    hooks = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    for rows in prompts.tokens.split(batch):
        bridge.run_with_hooks(rows.to(model.device), return_type=None, fwd_hooks=hooks)
    modules = [*bridge.blocks, *(block.attn for block in bridge.blocks)]
    # One prompt suffices: all have one length, so masks and positions are those of the others.
    arguments, two = (
        _arguments(modules, lambda rows=rows: bridge(rows.to(model.device)))
        for rows in (prompts.tokens[:1], prompts.tokens[:1].expand(2, -1))
    )
    whole = {name: torch.cat(parts) for name, parts in kept.items()}

    def stack(kind: str) -> torch.Tensor:
        return torch.stack([whole[_hook(layer, kind)] for layer in range(last + 1)])

    residual = torch.cat([stack("in"), whole[_hook(last, "out")][None]])
    activations = Activations(stack("z"), stack("mlp"))
    axes = _row_axes(arguments, two)
    return Run(residual, activations, arguments[: last + 1], arguments[last + 1 :], axes)


def _row_axes(one: Sequence[dict[str, Any]], two: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Along which axis arguments grow with the prompts."""
    found = {}
    for small, large in zip(one, two, strict=True):
        for name, value in small.items():
            if isinstance(value, torch.Tensor) and value.shape != large[name].shape:
                pairs = enumerate(zip(value.shape, large[name].shape, strict=True))
                found[name] = next(i for i, (a, b) in pairs if a != b)
    return found


def _arguments(modules: Sequence[torch.nn.Module], call: Callable[[], Any]) -> list[dict[str, Any]]:
    """The keyword arguments that each module gets during one call, but for stream and cache."""
    found: list[dict[str, Any]] = [{} for _ in modules]
    handles = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.update(kwargs), with_kwargs=True
        )
        for module, seen in zip(modules, found, strict=True)
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    for seen in found:
        for name in ("hidden_states", "past_key_values", "past_key_value", "layer_past"):
            seen.pop(name, None)
        if "use_cache" in seen:
            seen["use_cache"] = False
    return found


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


class Pruning:
    """A circuit that loses components one after another; each trial starts where it differs.

    The stream that enters every block is kept, so a trial of a component in layer ``l`` runs blocks
    ``l`` and up only, whatever was removed before.

    Args:
        evaluator: The evaluator.
        removed: Components that are out from the beginning.
    """

    def __init__(self, evaluator: Evaluator, removed: Iterable[Component] = ()) -> None:
        self.evaluator = evaluator
        self.removed = set(removed)
        self._streams = list(evaluator.run.residual)
        self._pending: tuple[frozenset[Component], list[torch.Tensor], torch.Tensor]
        self.score = evaluator.intact.logit_diff
        if self.removed:
            self.try_without(())
            self.accept()

    @torch.no_grad()
    def try_without(self, components: Iterable[Component]) -> torch.Tensor:
        """Logit differences ``[n]`` without these components too."""
        gone = frozenset(components)
        changed = gone or self.removed
        start = min(c.layer for c in changed)
        masks = self.evaluator.masks(self.removed | gone)
        trace: dict[str, torch.Tensor] = {}
        final = self.evaluator.replay([masks], self._streams[start], start, trace=trace)
        score = self.evaluator.difference(final)[0].cpu()
        if not torch.isfinite(score).all():
            raise UserError("the model's logits hold NaN or infinity: try dtype float32.")
        layers = range(start + 1, self.evaluator.model.n_layers)
        streams = [trace[_hook(layer, "in")] for layer in layers]
        self._pending = gone, [*self._streams[: start + 1], *streams, final[0]], score
        return score

    def accept(self) -> None:
        """Make the last trial the present state."""
        gone, self._streams, self.score = self._pending
        self.removed |= gone


def _during_block(
    evaluator: Evaluator,
    layer: int,
    stream: torch.Tensor,
    kind: str,
    instead: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The value at one hook of a block run on ``stream``, with other hooks' values given."""
    seen: list[torch.Tensor] = []
    hooks: list[tuple[str, Callable]] = [
        (_hook(layer, k), lambda v, hook, new=new: new) for k, new in (instead or {}).items()
    ]
    hooks.append((_hook(layer, kind), lambda v, hook: seen.append(v)))
    with evaluator.model.bridge.hooks(fwd_hooks=hooks):
        evaluator.block(layer, stream)
    return seen[0]


@torch.no_grad()
def path_effects(
    evaluator: Evaluator, sender: Component, receivers: Sequence[Component], source: str
) -> Scores:
    """Patch the direct path from a head into the ``q``, ``k`` or ``v`` of later heads.

    The sender's change of write (replacement minus own) is added to what the receiver reads for
    that one input, and to nothing else. A head's ``z`` depends on its own q, k and v only, so the
    path patch is a replacement of the receiver's ``z``; this also serves heads that share keys and
    values, each alone.

    Args:
        evaluator: Its replacement must hold one value per prompt (or a mean).
        sender: A head.
        receivers: Heads in later layers.
        source: ``q``, ``k`` or ``v``.

    Returns:
        Scores ``[receiver, n]``.

    Raises:
        UserError: for an MLP, a receiver not above the sender, or another input than q, k, v.
    """
    if source not in ("q", "k", "v"):
        raise unknown("input", source, ("q", "k", "v"))
    for receiver in receivers:
        if sender.head is None or receiver.head is None or receiver.layer <= sender.layer:
            raise UserError(f"no path from {sender} into the {source} of {receiver}.")
    found = require(
        evaluator.model,
        "heads",
        "one head's write cannot be moved along a path of its own: path patching does not apply. "
        "Ablation does.",
    )
    run = evaluator.run
    weights = evaluator.model.bridge.blocks[sender.layer].attn.W_O[sender.head]
    old = run.activations.z[sender.layer][:, :, sender.head]
    new = evaluator.replacement.z[sender.layer][:, :, sender.head]
    change = (new - old) @ (weights * found.attention[sender.layer])
    z = run.activations.z.clone()
    for layer in sorted({receiver.layer for receiver in receivers}):
        stream = run.residual[layer]
        read = _during_block(evaluator, layer, stream + change, source)
        z[layer] = _during_block(evaluator, layer, stream, "z", instead={source: read})
    patched = object.__new__(Evaluator)
    patched.__dict__.update(vars(evaluator), replacement=Activations(z, run.activations.mlp))
    return patched.replaced([[receiver] for receiver in receivers])

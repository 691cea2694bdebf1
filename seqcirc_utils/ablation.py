"""The evaluator: scores with any set of components replaced, exactly and fast.

A component is a head (its ``hook_z``, before the output projection) or an MLP (its write into the
residual stream). A replaced component's value comes from :class:`Activations`: the mean over
corrupted prompts (mean ablation, the paper's), or another run of the same prompts (activation
patching).

Why it is fast: nothing below the first replaced component changes, so a candidate starts there,
from the residual stream kept by one earlier run, and only the final position is unembedded.
Candidates that start in one layer share a batch. ``tests/test_ablation.py`` holds the result to
whole passes with plain hooks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformer_lens.tools.analysis import logit_readout

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
        """The mean over prompts, position by position."""
        return Activations(self.z.mean(1, keepdim=True), self.mlp.mean(1, keepdim=True))


@dataclass(frozen=True)
class Run:
    """A run of the model kept for replay.

    Attributes:
        residual: The stream that enters each block, and the last one's output
            ``[layer + 1, n, pos, d_model]``.
        activations: What the components wrote.
        block_arguments: What else the model hands to each block (masks may differ by layer).
    """

    residual: torch.Tensor
    activations: Activations
    block_arguments: list[dict[str, Any]]


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


@torch.no_grad()
def record(model: Model, prompts: Prompts, batch: int = 64) -> Run:
    """Run the model once and keep what replay and replacement need."""
    bridge, last = model.bridge, model.n_layers - 1
    names = {_hook(layer, kind) for layer in range(last + 1) for kind in ("in", "z", "mlp")}
    names.add(_hook(last, "out"))
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    arguments: list[dict[str, Any]] = [{} for _ in range(last + 1)]

    def keep(value: torch.Tensor, hook: Any, name: str) -> None:
        kept[name].append(value.clone())

    hooks = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    for rows in prompts.tokens.split(batch):
        bridge.run_with_hooks(rows.to(model.device), return_type=None, fwd_hooks=hooks)
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs, found=found: found.update(kwargs), with_kwargs=True
        )
        for block, found in zip(bridge.blocks, arguments, strict=True)
    ]
    try:
        # One prompt suffices: all have one length, so masks and positions are those of the others.
        bridge(prompts.tokens[:1].to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    for found in arguments:
        for name in ("past_key_values", "past_key_value", "layer_past"):
            found.pop(name, None)
        if "use_cache" in found:
            found["use_cache"] = False
    whole = {name: torch.cat(parts) for name, parts in kept.items()}

    def stack(kind: str) -> torch.Tensor:
        return torch.stack([whole[_hook(layer, kind)] for layer in range(last + 1)])

    residual = torch.cat([stack("in"), whole[_hook(last, "out")][None]])
    return Run(residual, Activations(stack("z"), stack("mlp")), arguments)


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
        UserError: when the replacement fits neither the prompts nor the model.
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
        self.intact = Scores.read(self._unembed(self.run.residual[-1]), self.answers)

    def masks(self, names: Iterable[Component]) -> tuple[torch.Tensor, torch.Tensor]:
        """A set of components as boolean masks: heads ``[layer, head]``, MLPs ``[layer]``."""
        heads = torch.zeros(self.model.n_layers, self.model.n_heads, dtype=torch.bool)
        mlps = torch.zeros(self.model.n_layers, dtype=torch.bool)
        known = set(components(self.model))
        for component in names:
            if component not in known:
                raise unknown("component", str(component), map(str, known))
            if component.head is None:
                mlps[component.layer] = True
            else:
                heads[component.layer, component.head] = True
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
        with bar:
            for rows in batches:
                logits = self._replay(
                    [self.masks(candidates[i]) for i in rows],
                    [positions[i] for i in rows],
                    starts[rows[0]],
                )
                scores = Scores.read(logits, self.answers)
                for i, row in enumerate(rows):
                    found[row] = Scores(*(getattr(scores, f)[i : i + 1] for f in vars(scores)))
                bar.update(len(rows))
        return Scores.concatenate([found[i] for i in range(len(candidates))])

    def kept(
        self, circuits: Sequence[Iterable[Component]], *, progress: str | None = None
    ) -> Scores:
        """Scores of circuits: every component outside each of the sets is replaced."""
        everything = set(components(self.model))
        outside = [everything - set(circuit) for circuit in circuits]
        for circuit in circuits:
            self.masks(circuit)  # refuses unknown components
        return self.replaced(outside, progress=progress)

    @torch.no_grad()
    def _replay(
        self, masks: list[tuple[torch.Tensor, torch.Tensor]], positions: list, start: int
    ) -> torch.Tensor:
        """Final-position logits ``[candidate, n, vocab]`` of candidates that start in one layer."""
        bridge, device = self.model.bridge, self.run.residual.device
        n, pos = self.prompts.tokens.shape
        everywhere = torch.ones(n, pos, dtype=torch.bool)
        where = torch.stack([everywhere if p is None else p for p in positions])
        where = where.to(device)[..., None]  # [candidate, n, pos, 1]
        heads = torch.stack([m[0] for m in masks]).to(device)
        mlps = torch.stack([m[1] for m in masks]).to(device)
        rows = len(masks) * n

        def swap(value: torch.Tensor, mask: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            split = value.reshape(len(masks), n, *value.shape[1:])
            return torch.where(mask, new, split).reshape(value.shape)

        hooks = []
        for layer in range(start, self.model.n_layers):
            if heads[:, layer].any():
                mask = (where & heads[:, layer][:, None, None, :])[..., None]
                new = self.replacement.z[layer]
                hooks.append((_hook(layer, "z"), lambda v, hook, m=mask, r=new: swap(v, m, r)))
            if mlps[:, layer].any():
                mask = where & mlps[:, layer][:, None, None, None]
                new = self.replacement.mlp[layer]
                hooks.append((_hook(layer, "mlp"), lambda v, hook, m=mask, r=new: swap(v, m, r)))
        stream = self.run.residual[start].repeat(len(masks), 1, 1)
        with bridge.hooks(fwd_hooks=hooks):
            for layer in range(start, self.model.n_layers):
                stream = self.block(layer, stream)
        return self._unembed(stream).reshape(len(masks), rows // len(masks), -1)

    def block(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Run one block on a residual stream ``[rows, pos, d_model]``."""
        out = self.model.bridge.blocks[layer](stream, **self.run.block_arguments[layer])
        return out[0] if isinstance(out, tuple) else out

    def _unembed(self, stream: torch.Tensor) -> torch.Tensor:
        return logit_readout(self.model.bridge, stream[:, -1], chunk_size=self.max_rows).values


def _during_block(
    evaluator: Evaluator,
    layer: int,
    stream: torch.Tensor,
    kind: str,
    instead: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The value at one hook of a block run on ``stream``, with other hooks' values given."""
    seen: list[torch.Tensor] = []
    hooks = [(_hook(layer, k), lambda v, hook, new=new: new) for k, new in (instead or {}).items()]
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
    if "ln1_post" in evaluator.model.bridge.blocks[sender.layer]._modules:
        raise UserError(
            f"{evaluator.model.facts.title} normalises what its heads write, so one head's write "
            "cannot be moved along a path of its own: path patching does not apply."
        )
    run = evaluator.run
    weights = evaluator.model.bridge.blocks[sender.layer].attn.W_O[sender.head]
    old = run.activations.z[sender.layer][:, :, sender.head]
    new = evaluator.replacement.z[sender.layer][:, :, sender.head]
    change = (new - old) @ weights
    z = run.activations.z.clone()
    for layer in sorted({receiver.layer for receiver in receivers}):
        stream = run.residual[layer]
        read = _during_block(evaluator, layer, stream + change, source)
        z[layer] = _during_block(evaluator, layer, stream, "z", instead={source: read})
    patched = object.__new__(Evaluator)
    patched.__dict__.update(vars(evaluator), replacement=Activations(z, run.activations.mlp))
    return patched.replaced([[receiver] for receiver in receivers])

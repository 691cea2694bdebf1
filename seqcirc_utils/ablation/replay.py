"""Running the model once, and keeping what a replay with parts replaced needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from seqcirc_utils.models.capabilities import wiring
from seqcirc_utils.models.loading import Model


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

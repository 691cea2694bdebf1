"""Running the model once, and keeping what is needed to run parts of it again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from seqcirc_utils.errors import UserError
from seqcirc_utils.models.capabilities import added, before, first, wiring
from seqcirc_utils.models.loading import Model


def _index(rows: Sequence[int], n: int) -> slice | list[int]:
    """What picks rows out of ``n``; those in a row without a copy."""
    if isinstance(rows, range) and rows.step == 1 and 0 <= rows.start and rows.stop <= n:
        return slice(rows.start, rows.stop)
    return list(rows)


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

    def __mul__(self, factor: float) -> "Activations":
        """Every write times a factor."""
        return Activations(self.z * factor, self.mlp * factor)

    def __getitem__(self, rows: Sequence[int]) -> "Activations":
        """Those of some prompts; a mean is that of any."""
        if self.z.shape[1] == 1:
            return self
        some = _index(rows, self.z.shape[1])
        return Activations(self.z[:, some], self.mlp[:, some])


@dataclass(frozen=True)
class Run:
    """A run of the model, and the parts of its blocks to run again.

    Attributes:
        model: The model.
        tokens: Token ids of the prompts ``[n, pos]``.
        residual: The stream that enters each block, and the last one's output
            ``[layer + 1, n, pos, d_model]``.
        head_shape: How many heads a layer has, and their width.
        written: What the components wrote, where that was kept.
        block_arguments: What else the model hands to each block (masks may differ by layer).
        attention_arguments: What else each block hands to its attention.
        row_axes: Arguments that hold something for each prompt, and along which axis.
        by_parts: Whether attention and then the MLP, each by itself, make these very streams, and
            no position reads a later one.
    """

    model: Model
    tokens: torch.Tensor
    residual: torch.Tensor
    head_shape: tuple[int, ...]
    written: Activations | None
    block_arguments: list[dict[str, Any]]
    attention_arguments: list[dict[str, Any]]
    row_axes: dict[str, int]
    by_parts: bool = False

    def __getitem__(self, rows: Sequence[int]) -> "Run":
        """The run of some of its prompts."""
        some = _index(rows, len(self.tokens))
        return replace(
            self,
            tokens=self.tokens[some],
            residual=self.residual[:, some],
            written=self.written and self.written[rows],
        )

    @property
    def z_shape(self) -> tuple[int, ...]:
        """Shape of all heads' ``z`` of a layer ``(n, pos, head, d_head)``."""
        return *self.tokens.shape, *self.head_shape

    @cached_property
    def activations(self) -> Activations:
        """What the components wrote; recorded now where it was not kept."""
        written = self.written or record(self.model, self).written
        assert written is not None
        return written

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

    def block(self, layer: int, stream: torch.Tensor, hooks: Sequence[Any] = ()) -> torch.Tensor:
        """A whole block's output on a stream ``[rows, pos, d_model]``, under the model's hooks."""
        more = self.for_rows(self.block_arguments[layer], len(stream))
        with self.model.bridge.hooks(fwd_hooks=list(hooks)):
            return first(self.model.bridge.blocks[layer](stream, **more))

    def heads(self, layer: int, z: torch.Tensor) -> torch.Tensor:
        """What attention adds ``[…, d_model]`` when its heads hold ``z`` ``[…, head, d_head]``."""
        block = self.model.bridge.blocks[layer]
        return self._after(layer, block.attn.o(z.flatten(-2)))

    def _after(self, layer: int, out: torch.Tensor) -> torch.Tensor:
        factor = wiring(self.model).attention[layer]
        return added(self.model.bridge.blocks[layer], "ln1_post", factor, out)

    def attention(
        self, layer: int, stream: torch.Tensor, act: Callable | None = None
    ) -> torch.Tensor:
        """What attention adds to a stream ``[rows, pos, d_model]``.

        Args:
            layer: The layer.
            stream: What enters the block.
            act: What the heads hold instead, from what they hold ``[rows, pos, head, d_head]``.
        """
        block, shape = self.model.bridge.blocks[layer], self.head_shape

        def change(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            z = inputs[0].reshape(*stream.shape[:2], *shape)
            return ((act(z) if act else z).reshape(inputs[0].shape),)

        more = self.for_rows(self.attention_arguments[layer], len(stream))
        # Torch's own hook: TransformerLens' context manager costs more than a short attention.
        handle = block.attn.o.register_forward_pre_hook(change)
        try:
            out = block.attn(hidden_states=before(block, "ln1", stream), **more)
        finally:
            handle.remove()
        return self._after(layer, first(out))

    def mlp(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """What the MLP adds to a stream ``[rows, pos, d_model]`` at each of its positions."""
        block, factor = self.model.bridge.blocks[layer], wiring(self.model).mlp[layer]
        return added(block, "ln2_post", factor, first(block.mlp(before(block, "ln2", stream))))

    def parts_add_up(self) -> bool:
        """Whether parts make the first prompt's streams, as ``by_parts`` says."""
        if "in_turn" in wiring(self.model).lacks:
            return False
        for layer, (stream, out) in enumerate(zip(self.residual, self.residual[1:], strict=False)):
            added = self.attention(layer, stream[:1])
            middle = stream[:1] + added
            if not torch.allclose(middle + self.mlp(layer, middle), out[:1], 1e-4, 1e-3):
                return False
            other = torch.cat([stream[:1, :-1], -stream[:1, -1:]], 1)  # another end
            before = self.attention(layer, other)[:, :-1]
            if not torch.allclose(before, added[:, :-1], 1e-4, 1e-3):
                return False
        return True


def hook_name(layer: int, kind: str) -> str:
    """The model's name of a block's hook: its ``in``, ``out``, ``mlp``, or heads' ``z q k v``."""
    if kind in ("z", "q", "k", "v"):
        return f"blocks.{layer}.attn.hook_{kind}"
    return f"blocks.{layer}.hook_{'mlp_out' if kind == 'mlp' else kind}"


class Tokens(Protocol):
    """All that recording reads of prompts."""

    @property
    def tokens(self) -> torch.Tensor:
        """Token ids ``[n, pos]``."""


def run_blocks(model: Model, tokens: torch.Tensor, hooks: Sequence[tuple[str, Callable]]) -> None:
    """Run the model's blocks on ``[n, pos]`` under hooks, without the final norm and the logits.

    Logits of all positions take a fifth of the time of a small model, and more memory than the
    rest.
    """

    def stop(value: torch.Tensor, hook: Any) -> None:
        raise StopAtLayerException(value)

    after = model.n_layers
    model.bridge.run_with_hooks(
        tokens.to(model.device),
        return_type=None,
        fwd_hooks=[*hooks, (hook_name(after - 1, "out"), stop)],
        stop_at_layer=after,
    )


@torch.no_grad()
def record(model: Model, prompts: Tokens, batch: int = 64, *, writes: bool = True) -> Run:
    """Run the model once and keep what replay and replacement need.

    Args:
        model: The model.
        prompts: The prompts.
        batch: How many of them run together.
        writes: Keep what the components write too: twice as much again as the streams, which are
            all that replay reads.
    """
    wiring(model)  # refuses a model without heads and an MLP in every layer
    last = model.n_layers - 1
    kinds = ("in", "z", "mlp") if writes else ("in",)
    places = {hook_name(i, kind): (kind, i) for i in range(last + 1) for kind in kinds}
    places |= {hook_name(0, "z"): ("z", 0), hook_name(last, "out"): ("in", last + 1)}
    kept: dict[str, torch.Tensor] = {}  # [layer, n, …], filled in place: no second copy
    heads: list[int] = []  # how many, and their width

    def keep(value: torch.Tensor, hook: Any, name: str, rows: torch.Tensor) -> None:
        kind, layer = places[name]
        if kind == "z":
            heads[:] = value.shape[2:]
        if kind not in kinds:
            return
        if kind not in kept:
            depth = last + 1 + (kind == "in")
            kept[kind] = value.new_empty(depth, len(prompts.tokens), *value.shape[1:])
        kept[kind][layer, rows] = value

    for rows in torch.arange(len(prompts.tokens)).split(batch):
        hooks = [(name, partial(keep, name=name, rows=rows)) for name in places]
        run_blocks(model, prompts.tokens[rows], hooks)
    written = Activations(kept["z"], kept["mlp"]) if writes else None
    tokens, shape = prompts.tokens, tuple(heads)
    run = Run(model, tokens, kept["in"], shape, written, *_handed(model, prompts))
    by_parts = model.once(("by parts", tokens.shape[1]), run.parts_add_up)
    return replace(run, by_parts=by_parts)


MEANS_BATCH = 16
"""Prompts of one batch where means are taken: more take memory and save no time."""


def mean_activations(model: Model, prompts: Tokens, batch: int = MEANS_BATCH) -> Activations:
    """What components write on average over prompts, position by position: mean ablation.

    As ``record(…).activations.mean()``, without holding more than a batch.
    """
    total = None
    for tokens in prompts.tokens.split(batch):
        mean = record(model, SimpleNamespace(tokens=tokens)).activations.mean()
        some = mean * (len(tokens) / len(prompts.tokens))
        total = some if total is None else Activations(total.z + some.z, total.mlp + some.mlp)
    assert total is not None, "there are no prompts"
    return total


def _handed(
    model: Model, prompts: Tokens
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """What blocks and attentions are handed beside the stream, by the length of the prompts.

    Masks and positions are those of all prompts of a length, so one prompt's are recorded.

    Raises:
        UserError: for a model that hands on something of the prompts' words.
    """
    bridge, (n, length) = model.bridge, prompts.tokens.shape

    def measure() -> tuple[list[dict[str, Any]], dict[str, int]]:
        modules = [*bridge.blocks, *(block.attn for block in bridge.blocks)]
        first = prompts.tokens[:1]
        # Another prompt of this length; of one alone, its own words in another order.
        other = prompts.tokens[-1:] if n > 1 else torch.cat([first[:, :1], first[:, 1:].flip(1)], 1)
        one, two = (
            _arguments(modules, lambda tokens=tokens: bridge(tokens.to(model.device)))
            for tokens in (first, torch.cat([first, other]))
        )
        return one, _row_axes(model, one, two)

    found, axes = model.once(("handed", length, str(model.device)), measure)
    arguments = [dict(some) for some in found]
    return arguments[: len(bridge.blocks)], arguments[len(bridge.blocks) :], axes


def _row_axes(
    model: Model, one: Sequence[dict[str, Any]], two: Sequence[dict[str, Any]]
) -> dict[str, int]:
    """Along which axis arguments of one prompt, and of it and another, grow with the prompts.

    Raises:
        UserError: for arguments that differ between the two prompts.
    """
    found = {}
    for small, large in zip(one, two, strict=True):
        for name, value in small.items():
            if not isinstance(value, torch.Tensor):
                continue
            parts = [large[name]]
            if value.shape != large[name].shape:
                pairs = enumerate(zip(value.shape, large[name].shape, strict=True))
                found[name] = next(i for i, (a, b) in pairs if a != b)
                parts = large[name].chunk(2, found[name])
            if not all(torch.equal(value, part) for part in parts):
                raise UserError(
                    f"{model.facts.title} hands its layers another {name} for other prompts of one "
                    "length, so no part of it can be run again by itself: choose another model."
                )
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

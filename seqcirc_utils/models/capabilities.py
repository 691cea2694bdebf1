"""What may be read off a model's weights: asked of the model itself, by name, with the reason.

A head writes ``z @ W_O``, and the logits are ``ln_final(stream) @ W_U``, only where the model does
nothing else on the way. Some multiply what a layer adds (Granite), norm it (Gemma 2, OLMo 2), run
attention and MLP side by side (GPT-NeoX) or cap the logits (Gemma 2). Two short passes of the
model, one of them with silent MLPs, show what holds; names of architectures are never asked for.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.errors import UserError
from seqcirc_utils.models.loading import Model

REASONS = {
    "heads": "normalises (or changes otherwise) what its heads write together",
    "shares": "changes what its heads write in a way that cannot be shared out among them",
    "in_turn": "does not run attention and then the MLP, each by itself, in every layer",
    "between": "does not add what attention and the MLP of a layer write",
    "values": "does not take its heads' values from the normed stream by W_V alone",
    "readout": "does not make its logits from the last stream by final norm and unembedding alone",
    "linear": "caps its logits, so that they are no sum",
}
"""The capabilities, and what is said of a model that lacks one.

- ``heads``: what a head adds to the stream is ``factor * (z @ W_O)``.
- ``shares``: it is that, or its share of a norm over the sum of all heads.
- ``in_turn``: a block is ``x += attention(norm(x)); x += mlp(norm(x))``, with factors and norms.
- ``between``: the stream between attention and MLP is the block's output less the MLP's write.
- ``values``: a head's values are ``norm(x) @ W_V + b_V``.
- ``readout``: logits are a function, token by token, of ``ln_final(x) @ W_U + b_U``.
- ``linear``: that function is a factor.
"""


@dataclass(frozen=True)
class Wiring:
    """What holds in every layer of a model.

    Attributes:
        attention: Per layer, what the output of attention is multiplied by before it is added (1.0
            where a norm comes in between).
        mlp: The same of the MLP's output.
        between: Per layer, whether the model itself has that stream, at ``hook_resid_mid``.
        logits: What the unembedding's output is multiplied by, where it is.
        lacks: The capabilities it does not have.
    """

    attention: list[float]
    mlp: list[float]
    between: list[bool]
    logits: float
    lacks: frozenset[str]


def wiring(model: Model) -> Wiring:
    """What holds of a model; measured once, and kept by the model.

    Raises:
        UserError: for a model with a layer that has no heads or no MLP.
    """
    return model.once("wiring", lambda: _measure(model))


def require(model: Model, needs: str, so: str) -> Wiring:
    """The wiring of a model that has some capabilities.

    Args:
        model: The model.
        needs: Names of capabilities, in one string.
        so: What follows when one is missing, and what to do.

    Raises:
        UserError: when one is missing.
    """
    found = wiring(model)
    for need in needs.split():
        if need in found.lacks:
            raise UserError(f"{model.facts.title} {REASONS[need]}, so {so}")
    return found


def before(block: Any, norm: str, stream: torch.Tensor) -> torch.Tensor:
    """What a part of a block reads: the stream through a norm (``ln1``, ``ln2``), if it has one."""
    return block._modules[norm](stream) if norm in block._modules else stream


def added(block: Any, norm: str, factor: float, out: torch.Tensor) -> torch.Tensor:
    """What a part adds to the stream: its output through a norm (``ln1_post`` …) and times this."""
    out = before(block, norm, out)
    return out if factor == 1 else out * factor


def first(out: Any) -> torch.Tensor:
    """The output of a module that may return more beside it."""
    return out[0] if isinstance(out, tuple) else out


def logits(model: Model, normed: torch.Tensor, ids: Any) -> torch.Tensor:
    """Logits of some tokens ``[..., id]`` for streams behind the final norm ``[..., d_model]``."""
    bridge = model.bridge
    return bridge.adapter.apply_output_logits_transform(
        normed @ bridge.W_U[:, ids] + bridge.b_U[ids]
    )


def shares(block: Any, writes: torch.Tensor) -> torch.Tensor:
    """What each head's write ``[..., head, d_model]`` is behind a norm over their sum."""
    if "ln1_post" not in block._modules:
        return writes
    total = writes.sum(-2, keepdim=True)

    def direction(write: torch.Tensor) -> torch.Tensor:
        # Norms by root mean square forget the length, but for a small constant: none of it is left.
        length = write.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return block.ln1_post(write * (100 * write.shape[-1] ** 0.5 / length))

    length = block.ln1_post(total).norm(dim=-1) / direction(total).norm(dim=-1)
    share = writes.norm(dim=-1) / total.norm(dim=-1) * length
    return direction(writes) * share[..., None]


_KINDS = ("hook_in", "hook_out", "attn.hook_z", "hook_mlp_out")


@dataclass(frozen=True)
class _Recording:
    """What two runs on random tokens show.

    Attributes:
        seen: Hook to its value in a usual run, ``[2, 8, …]``.
        quiet: The same with all MLPs silent.
        outputs: Attention or MLP to what it gave each time it was handed nothing but the stream.
        made: The logits of the usual run, ``[2, 8, d_vocab]``.
    """

    seen: dict[str, torch.Tensor]
    quiet: dict[str, torch.Tensor]
    outputs: dict[torch.nn.Module, list[torch.Tensor]]
    made: torch.Tensor


def _record(model: Model) -> _Recording:
    bridge, layers = model.bridge, range(model.n_layers)
    names = [f"blocks.{layer}.{kind}" for layer in layers for kind in _KINDS]
    for name in names:
        if name not in bridge.hook_dict:
            raise UserError(
                f"{model.facts.title} has a layer without heads or without an MLP (no {name}): "
                "choose a model whose layers all have both."
            )
    special = {*model.tokenizer.all_special_ids}
    usual = torch.tensor([i for i in range(min(model.facts.d_vocab, 4096)) if i not in special])
    tokens = usual[torch.randint(len(usual), (2, 8), generator=derive_generator(0, "wiring"))]
    names += [n for n in (f"blocks.{i}.hook_resid_mid" for i in layers) if n in bridge.hook_dict]

    def run(silent: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}

        def keep(value: torch.Tensor, hook: Any, name: str) -> torch.Tensor:
            value = torch.zeros_like(value) if silent and name.endswith("mlp_out") else value
            seen[name] = value.clone()
            return value

        hooks = [(name, partial(keep, name=name)) for name in names]
        return seen, bridge.run_with_hooks(tokens.to(model.device), fwd_hooks=hooks)

    outputs: dict[torch.nn.Module, list[torch.Tensor]] = defaultdict(list)

    def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        if len(args) + ("hidden_states" in kwargs) == 1:  # nothing but the stream
            outputs[module].append(first(out))

    parts = [part for block in bridge.blocks for part in (block.attn, block.mlp)]
    handles = [part.register_forward_hook(note, with_kwargs=True) for part in parts]
    try:
        seen, made = run(silent=False)
    finally:
        for handle in handles:
            handle.remove()
    quiet, _ = run(silent=True)
    return _Recording(seen, quiet, outputs, made)


@torch.no_grad()
def _measure(model: Model) -> Wiring:
    bridge, ran = model.bridge, _record(model)
    attention, mlp, between, lacks = [], [], [], set()
    for layer, block in enumerate(bridge.blocks):
        stream, out, z, write = (ran.seen[f"blocks.{layer}.{kind}"] for kind in _KINDS)
        mid = ran.seen.get(f"blocks.{layer}.hook_resid_mid")
        silent = (ran.quiet[f"blocks.{layer}.{kind}"] for kind in _KINDS[:3])
        factor, missing = _heads(block, *silent)
        attention.append(factor)
        lacks |= missing
        raw = ran.outputs[block.mlp]
        scale = _factor(before(block, "ln2_post", raw[0]), write, stream) if raw else None
        mlp.append(scale or 1.0)
        between.append(mid is not None and _close(mid + write, out, stream))
        if not (between[layer] and scale and len(raw) == len(ran.outputs[block.attn]) == 1):
            lacks.add("in_turn")
        plus = added(block, "ln1_post", factor, block.attn.o(z.flatten(-2)))
        if not (between[layer] or _close(stream + plus + write, out, stream)):
            lacks.add("between")
        # The first token has only itself to look at.
        if not _close(head_values(model, layer, stream[:, 0]), z[:, 0], z[:, 0]):
            lacks.add("values")
    sizes = torch.tensor([[[-1e4, -1e2, -1.0, 1.0, 1e2, 1e4]]], device=model.device)
    ratio = (bridge.adapter.apply_output_logits_transform(sizes) / sizes)[0, 0]
    if not torch.allclose(ratio, ratio[2]):
        lacks.add("linear")
    final = ran.seen[f"blocks.{model.n_layers - 1}.hook_out"]
    if not hasattr(bridge, "ln_final") or bridge.W_U.shape[0] != final.shape[-1]:
        lacks.add("readout")
    else:
        read = logits(model, bridge.ln_final(final), slice(None))
        # A constant on all logits is no part of what they say.
        read, made = (x.float() - x.float().mean(-1, keepdim=True) for x in (read, ran.made))
        if not _close(read, made, made):
            lacks.add("readout")
    return Wiring(attention, mlp, between, float(ratio[2]), frozenset(lacks))


def head_values(model: Model, layer: int, stream: torch.Tensor) -> torch.Tensor:
    """The values of every head ``[rows, head, d_head]`` for streams ``[rows, d_model]``."""
    block = model.bridge.blocks[layer]
    v = torch.einsum("rd,kde->rke", before(block, "ln1", stream), block.attn.W_V)
    if block.attn.b_V is not None:
        v = v + block.attn.b_V
    return v.repeat_interleave(model.n_heads // v.shape[1], 1)


def _heads(
    block: Any, stream: torch.Tensor, out: torch.Tensor, z: torch.Tensor
) -> tuple[float, set[str]]:
    """The factor of what heads write, and what they lack, from a pass with silent MLPs."""
    bias, total = block.attn.b_O, out - stream
    writes = torch.einsum("rphd,hde->rphe", z, block.attn.W_O)
    write = writes.sum(-2) if bias is None else writes.sum(-2) + bias
    if not _close(block.attn.o(z.flatten(-2)), write, write):
        return 1.0, {"heads", "shares", "in_turn"}
    # A norm is seen by its name as well: in half precision its effect may drown in the stream.
    factor = None if "ln1_post" in block._modules else _factor(write, total, stream)
    if factor is not None:
        return factor, set()
    missing = {"heads"}
    if not _close(before(block, "ln1_post", write), total, stream):
        missing |= {"shares", "in_turn"}
    elif not _close(shares(block, writes).sum(-2), total, stream):
        missing.add("shares")
    return 1.0, missing


def _factor(raw: torch.Tensor, target: torch.Tensor, stream: torch.Tensor) -> float | None:
    """The number that ``raw`` is multiplied by to give ``target``; ``None`` where none does."""
    x, y = (v.cpu().double().flatten() for v in (raw, target))  # MPS has no float64
    factor = (x @ y / (x @ x)).item()
    if abs(factor - 1) < _tolerance(raw):
        factor = 1.0
    return factor if factor and _close(factor * raw, target, stream) else None


def _tolerance(value: torch.Tensor) -> float:
    return torch.finfo(value.dtype).eps ** 0.5


def _close(found: torch.Tensor, target: torch.Tensor, stream: torch.Tensor) -> bool:
    """Equal but for rounding, which goes by the size of the stream that ``target`` comes from."""
    left = (found - target).norm(dim=-1)
    rounding = 2 * torch.finfo(target.dtype).eps * stream.norm(dim=-1)
    return bool((left <= _tolerance(target) * target.norm(dim=-1) + rounding).all())

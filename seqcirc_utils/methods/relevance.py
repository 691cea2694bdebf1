"""Rules of relevance: the same forward pass, with another way back.

Under the rules a model is linear in its embedding, whatever it computes: norms have the scale and
attention the pattern that they had, an activation function is a factor, and of a product each side
gets half. A slope taken so is the propagation coefficient of relevance patching.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from seqcirc_utils.errors import CannotDo
from seqcirc_utils.models.capabilities import first, require
from seqcirc_utils.models.loading import Model

_SO = "relevance rules do not apply. Gradients do."


@contextlib.contextmanager
def relevance_rules(model: Model) -> Iterator[None]:
    """Let slopes follow the rules within the block; values stay as they are.

    - LN-rule (Ali et al., 2022): a norm is a multiplication by the scale that it had.
    - AH-rule (same): attention moves values by the pattern that it had.
    - Identity rule and half rule (Jafari et al., 2024; Arras et al., 2019): an activation function
      is a factor; a gate and what it multiplies get half each.
    - Linear maps as they are (0-rule).

    Raises:
        CannotDo: for a model with parts that have no rule here (capped logits, other MLPs).
        UserError: for a model whose logits are not made by final norm and unembedding.
    """
    if "linear" in require(model, "readout", _SO).lacks:
        raise CannotDo(f"{model.facts.title} caps its logits, which have no rule, so {_SO}")
    bridge, handles = model.bridge, []
    try:
        for block in bridge.blocks:
            for name, part in block._modules.items():
                if name.startswith("ln") and part is not None:
                    handles.append(part.register_forward_hook(_Scale(model, part)))
            for name in ("q", "k"):
                if name not in block.attn._modules:
                    raise CannotDo(f"{model.facts.title} has no queries of their own, so {_SO}")
                handles.append(block.attn._modules[name].register_forward_hook(_constant))
            handles += _factors(model, block.mlp)
        handles.append(bridge.ln_final.register_forward_hook(_Scale(model, bridge.ln_final)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _constant(module: torch.nn.Module, inputs: Any, out: torch.Tensor) -> torch.Tensor:
    return out.detach()


def _sloped(value: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """The one's value with the other's slope."""
    return value.detach() + (by - by.detach())


class _Scale:
    """A norm, made linear: its weights and what it subtracts are found by asking it."""

    def __init__(self, model: Model, norm: Callable[[torch.Tensor], Any]) -> None:
        self.title = model.facts.title
        d, dtype = model.facts.d_model, model.bridge.W_U.dtype
        with torch.no_grad():
            sides = torch.ones(1, 1, d, device=model.device, dtype=dtype) * 1000
            sides[..., ::2] *= -1
            self.bias = norm(torch.zeros_like(sides))
            found = norm(sides) - self.bias
            self.centred = torch.allclose(norm(sides + 500) - self.bias, found, 1e-3, 1e-3)
            if self.centred:
                sides = sides - sides.mean(-1, keepdim=True)
            self.weight = found * sides.square().mean(-1, keepdim=True).sqrt() / sides

    def __call__(self, norm: Any, inputs: tuple[torch.Tensor, ...], out: Any) -> torch.Tensor:
        stream = inputs[0]
        kept = stream - stream.mean(-1, keepdim=True) if self.centred else stream
        raw = kept * self.weight
        size = raw.square().sum(-1, keepdim=True).clamp(min=1e-30)
        scale = ((out - self.bias) * raw).sum(-1, keepdim=True) / size
        linear = raw * scale.detach()
        if not torch.allclose(linear + self.bias, out, 1e-2, 1e-3):
            raise CannotDo(f"{self.title} has a norm that is no multiplication, so {_SO}")
        return _sloped(out, linear)


def _factors(model: Model, mlp: Any) -> list[Any]:
    """Hooks that make an MLP's activation function a factor, and share out its product."""
    gated = mlp._modules.get("gate") is not None
    parts = {name: mlp._modules.get(name) for name in ("gate", "in", "out")[not gated :]}
    if None in parts.values():
        raise CannotDo(f"{model.facts.title} has MLPs of another kind, so {_SO}")
    seen: dict[str, torch.Tensor] = {}

    def note(module: torch.nn.Module, inputs: Any, out: Any, name: str) -> None:
        seen[name] = first(out)

    def share(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        hidden, terms = inputs[0], torch.zeros_like(inputs[0])
        assert seen, "an MLP's projections were not asked"
        for side in seen.values():
            factor = torch.where(side == 0, 0, hidden / side)  # hidden is 0 there too
            terms = terms + side * factor.detach() / len(seen)
        seen.clear()
        return (_sloped(hidden, terms),)

    *sides, out = parts.items()
    handles = [
        part.register_forward_hook(lambda m, i, o, name=name: note(m, i, o, name))
        for name, part in sides
    ]
    return [*handles, out[1].register_forward_pre_hook(share)]

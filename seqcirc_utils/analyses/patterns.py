"""Whole attention patterns of a few heads."""

from collections.abc import Iterable

import torch

from seqcirc_utils.ablation.replay import Tokens, run_blocks
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.loading import Model


@torch.no_grad()
def patterns(model: Model, prompts: Tokens, heads: Iterable[Component]) -> torch.Tensor:
    """Where some heads look on prompts: weights ``[n, head, query position, key position]``.

    Raises:
        UserError: for a model whose weights are not seen.
    """
    heads, seen = list(heads), {}
    layers = sorted({head.layer for head in heads})
    hooks = [
        (
            f"blocks.{layer}.attn.hook_pattern",
            lambda value, hook, layer=layer: seen.update({layer: value.float().cpu()}),
        )
        for layer in layers
    ]
    run_blocks(model, prompts.tokens, hooks)
    if blind := [layer for layer in layers if layer not in seen]:
        raise UserError(
            f"{model.facts.title} does not show the attention of its layers "
            f"{', '.join(map(str, blind))}."
        )
    return torch.stack([seen[head.layer][:, head.head] for head in heads], 1)

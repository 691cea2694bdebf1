"""What single heads write into the residual stream."""

import torch

from seqcirc_utils.models.capabilities import head_values, require, shares
from seqcirc_utils.models.loading import Model

UNTOLD = "what a single head writes cannot be told: roles do not apply. Ablation does."
"""What follows for a model whose weights do not say what a head writes."""


def head_writes(model: Model, layer: int, z: torch.Tensor) -> torch.Tensor:
    """What each head adds to the residual stream.

    Where a model normalises the heads' sum (Gemma 2), each head gets its share of the result. The
    output bias belongs to no head.

    Args:
        model: The model.
        layer: The layer.
        z: Heads before the output projection ``[rows, head, d_head]``.

    Returns:
        ``[rows, head, d_model]``.

    Raises:
        UserError: for a model whose heads' writes cannot be told apart.
    """
    block, factor = model.bridge.blocks[layer], require(model, "shares", UNTOLD).attention[layer]
    writes = torch.einsum("rhd,hde->rhe", z, block.attn.W_O)
    return shares(block, writes if factor == 1 else writes * factor)


def ov_writes(model: Model, layer: int, stream: torch.Tensor) -> torch.Tensor:
    """What each head of a layer writes for a token to which it gives all its attention.

    Args:
        model: The model.
        layer: The layer.
        stream: Residual stream before the block's first norm ``[rows, d_model]``.

    Returns:
        ``[rows, head, d_model]``. Heads that share keys and values share the V part.

    Raises:
        UserError: for a model whose heads' values or writes are not told by weights.
    """
    require(model, "values", UNTOLD)
    return head_writes(model, layer, head_values(model, layer, stream))

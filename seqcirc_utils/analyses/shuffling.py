"""A model that has learned nothing: every weight shuffled."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from seqcirc_utils.models.loading import Model


@contextmanager
def shuffled_weights(model: Model, seed: int) -> Iterator[Model]:
    """The model with the rows and the columns of every weight shuffled, and put back afterwards.

    A model that has learned nothing: each weight keeps its values and so its layer's scale, but
    what one part writes is no longer what another reads.

    Args:
        model: The model, changed in place while inside.
        seed: Draws the orders.
    """
    generator = torch.Generator().manual_seed(seed)
    done = []
    try:
        for weight in dict.fromkeys(model.bridge.parameters()):  # a tied one once
            for axis in range(min(weight.ndim, 2)):
                order = torch.randperm(weight.shape[axis], generator=generator).to(weight.device)
                weight.data.copy_(weight.data.index_select(axis, order))
                done.append((weight, axis, order))
        yield model
    finally:
        # The last first: some are views into others (q, k and v of a joint weight).
        for weight, axis, order in reversed(done):
            weight.data.copy_(weight.data.index_select(axis, order.argsort()))

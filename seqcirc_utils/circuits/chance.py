"""Random circuits with the shape of a found one."""

from collections.abc import Iterable, Sequence

import torch
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.components import Component
from seqcirc_utils.models.loading import Model


def random_like(
    circuit: Iterable[Component],
    everything: Sequence[Component],
    draws: int,
    seed: int,
    *,
    by_layer: bool = False,
) -> list[list[Component]]:
    """Random circuits with as many heads and as many MLPs as ``circuit``.

    Args:
        circuit: What to imitate.
        everything: All components of the model.
        draws: How many.
        seed: Draws everything.
        by_layer: As many heads in every layer as the circuit has there, and the circuit's own MLPs
            (a layer has but one).
    """
    circuit = set(circuit)
    pools: dict[tuple, list[Component]] = {}
    for c in everything:
        pools.setdefault((c.head is None, c.layer if by_layer else None), []).append(c)
    found = []
    for draw in range(draws):
        rng = derive_generator(seed, "random circuit", draw)
        found.append(
            [
                pool[i]
                for pool in pools.values()
                for i in torch.randperm(len(pool), generator=rng)[: len(circuit & set(pool))]
            ]
        )
    return found


NEAR = 2
"""A matched random head lies within so many layers of the head that it stands for."""


def matched(
    model: Model, heads: Iterable[Component], draws: int, seed: int = 0
) -> list[frozenset[Component]]:
    """Different random sets of as many heads, each head within :data:`NEAR` layers of its pattern.

    The set itself is never drawn, but a draw may share heads with it.

    Returns:
        ``draws`` sets, or fewer where there are not so many different ones (single heads).
    """
    own = frozenset(heads)
    everything = [Component(i, j) for i in range(model.n_layers) for j in range(model.n_heads)]
    found: dict[frozenset[Component], None] = {}
    for draw in range(10 * draws):
        if len(found) == draws:
            break
        rng = derive_generator(seed, "matched heads", *map(str, sorted(own)), draw)
        chosen: set[Component] = set()
        patterns = sorted(own)
        for i in torch.randperm(len(patterns), generator=rng).tolist():
            left = [c for c in everything if c not in chosen]
            distance = [abs(c.layer - patterns[i].layer) for c in left]
            limit = max(NEAR, min(distance))  # a crowded place: as near as can be
            near = [c for c, d in zip(left, distance, strict=True) if d <= limit]
            chosen.add(near[int(torch.randint(len(near), (1,), generator=rng))])
        if chosen != own:
            found[frozenset(chosen)] = None
    return list(found)

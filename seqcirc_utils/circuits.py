"""What a circuit is, and what random circuits of its shape are."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils import store
from seqcirc_utils.ablation import Component, Evaluator
from seqcirc_utils.metrics import Interval, interval, positive_baseline


@dataclass(frozen=True)
class Circuit:
    """A node circuit of one task; everything outside it is ablated.

    Attributes:
        heads: ``[[layer, head], …]``, sorted.
        mlps: ``[layer, …]``, sorted.
        faithfulness: On evaluation prompts, of the whole model's logit difference.
        edges: Names such as ``4.10->9.1.q``; empty when no edges were searched for.
    """

    model: str
    task: str
    method: str
    ablation: str
    threshold: float
    n_prompts: int
    seed: int
    heads: list[list[int]]
    mlps: list[int]
    faithfulness: dict[str, float]
    edges: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def components(self) -> set[Component]:
        """The circuit as a set of components."""
        heads = {Component(layer, head) for layer, head in self.heads}
        return heads | {Component(layer, None) for layer in self.mlps}

    def __str__(self) -> str:
        f = self.faithfulness
        return (
            f"{self.task}: {len(self.heads)} heads, {len(self.mlps)} MLPs, faithfulness "
            f"{f['mean']:.2f} [{f['low']:.2f}, {f['high']:.2f}]"
        )

    def save(self, path: Path | str) -> Path:
        """Write the circuit as JSON."""
        return store.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path | str) -> "Circuit":
        """Read a circuit."""
        return cls(**store.read_json(path))


def split(components: Sequence[Component]) -> tuple[list[list[int]], list[int]]:
    """Components as sorted heads ``[[layer, head], …]`` and MLPs ``[layer, …]``."""
    heads = sorted([c.layer, c.head] for c in components if c.head is not None)
    return heads, sorted(c.layer for c in components if c.head is None)


def faithfulness(evaluator: Evaluator, circuit: Sequence[Component], seed: int = 0) -> Interval:
    """Mean logit difference of the circuit over that of the whole model, with its interval.

    Raises:
        UserError: when the whole model's mean logit difference is not positive.
    """
    whole = positive_baseline(evaluator.intact.logit_diff, "the whole model")
    return interval(evaluator.kept([circuit]).logit_diff[0] / whole, seed)


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


def percentile_p(value: float, null: Sequence[float] | np.ndarray) -> float:
    """One-sided p-value of ``value`` against draws of a null, never 0: (hits + 1) / (draws + 1)."""
    return (int((np.asarray(null) >= value).sum()) + 1) / (len(null) + 1)

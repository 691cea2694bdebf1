"""What a circuit is, and how a first one is found."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils import store
from seqcirc_utils.ablation import Component, Evaluator
from seqcirc_utils.errors import UserError
from seqcirc_utils.metrics import Interval, interval, positive_baseline


@dataclass(frozen=True)
class Circuit:
    """A node circuit of one task; everything outside it is ablated.

    Attributes:
        heads: ``[[layer, head], …]``, sorted.
        mlps: ``[layer, …]``, sorted.
        faithfulness: On evaluation prompts, of the whole model's logit difference.
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


def first_circuit(
    evaluator: Evaluator, ranking: Sequence[Component], threshold: float
) -> tuple[list[Component], dict[int, float]]:
    """The smallest set of top-ranked components that keeps ``threshold``, found by bisection.

    Bisection assumes that more components keep more; the scores met on the way are returned, so
    that a reader can see where that fails.

    Returns:
        The components, and faithfulness by circuit size for every size that was tried.

    Raises:
        UserError: for a threshold outside (0, 1] or a whole model that cannot do the task.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"threshold must be in (0, 1], got {threshold}.")
    whole = positive_baseline(evaluator.intact.logit_diff, "the whole model")
    tried: dict[int, float] = {}

    def keeps(size: int) -> bool:
        score = evaluator.kept([ranking[:size]]).logit_diff.mean().item()
        tried[size] = score / whole
        return tried[size] >= threshold

    low, high = 0, len(ranking)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    if high not in tried:
        keeps(high)
    return list(ranking[:high]), tried


def random_like(
    circuit: Sequence[Component], everything: Sequence[Component], draws: int, seed: int
) -> list[list[Component]]:
    """Random circuits with as many heads and as many MLPs as ``circuit``."""
    heads = [c for c in everything if c.head is not None]
    mlps = [c for c in everything if c.head is None]
    n_heads, n_mlps = (len(part) for part in split(circuit))
    found = []
    for draw in range(draws):
        rng = derive_generator(seed, "random circuit", draw)
        some = torch.randperm(len(heads), generator=rng)[:n_heads].tolist()
        others = torch.randperm(len(mlps), generator=rng)[:n_mlps].tolist()
        found.append([heads[i] for i in some] + [mlps[i] for i in others])
    return found


def percentile_p(value: float, null: Sequence[float]) -> float:
    """One-sided p-value of ``value`` against draws of a null, never 0: (hits + 1) / (draws + 1)."""
    return (int((np.asarray(null) >= value).sum()) + 1) / (len(null) + 1)

"""All methods on one evaluator: areas, smallest circuits and agreement, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import mannwhitneyu, spearmanr

from seqcirc_utils.components import Component
from seqcirc_utils.methods.benchmark import Judge, areas, sizes
from seqcirc_utils.statistics import Interval

DRAWS = 1000
"""Resamples of the prompts behind an interval."""
FINE = 0.01
"""A smallest circuit is looked for until it is known to this share of all components."""


@dataclass
class Circuits:
    """Circuits that were judged, each once, whoever asks.

    Attributes:
        judge: Prompts and ablation.
        whole: The metric of the whole model ``[n]``.
    """

    judge: Judge
    whole: torch.Tensor = field(init=False)
    _known: dict[frozenset[Component], torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.whole = self.judge.whole

    def values(self, circuits: Iterable[Iterable[Component]]) -> torch.Tensor:
        """The metric of each circuit ``[circuit, n]``."""
        asked = [frozenset(c) for c in circuits]
        new = list(dict.fromkeys(c for c in asked if c not in self._known))
        if new:
            self._known |= zip(new, self.judge.kept(new), strict=True)
        return torch.stack([self._known[c] for c in asked])

    def resampled(self, seed: int) -> np.ndarray:
        """Rows of bootstrap resamples of the prompts ``[draw, n]``; the first is the prompts."""
        n = len(self.whole)
        rows = np.random.default_rng(seed).integers(n, size=(DRAWS, n))
        return np.concatenate([np.arange(n)[None], rows])

    def areas(
        self, ranked: Sequence[Component], seed: int = 0
    ) -> tuple[np.ndarray, list[Interval]]:
        """MIB's faithfulness on its grid ``[size]``, and CPR and CMD with 95% intervals.

        Raises:
            CannotDo: when the whole model is not ahead of the empty circuit.
        """
        found = self.values([ranked[:size] for size in sizes(len(ranked))])  # [size, n]
        faithfulness = self.judge.faithfulness(found)
        rows = self.resampled(seed)
        kept, whole, empty = (x.double().numpy() for x in (found, self.whole, self.judge.empty))
        floor = empty[rows].mean(1)  # [draw]
        gap = whole[rows].mean(1) - floor
        curves = (kept[:, rows].mean(2) - floor) / gap  # [size, draw]
        both = np.array([areas(curve) for curve, g in zip(curves.T, gap, strict=True) if g > 0])
        low, high = np.quantile(both[1:], (0.025, 0.975), axis=0)
        ends = zip(both[0], low, high, strict=True)
        return faithfulness, [Interval(*map(float, end)) for end in ends]

    def shares(self, ranked: Sequence[Component], tried: Sequence[int]) -> np.ndarray:
        """The metric of the best-scored of each size, over the whole model's mean ``[size, n]``.

        The mean over prompts is the ratio of Lan et al.
        """
        return (self.values([ranked[:k] for k in tried]) / self.whole.mean()).double().numpy()


@dataclass(frozen=True)
class Smallest:
    """The smallest circuit of a ranking that keeps a wanted share.

    Attributes:
        size: How many components, with a 95% interval over prompts.
        share: The share of the whole model's metric that it keeps, with its interval.
    """

    size: Interval
    share: Interval


def smallest(
    circuits: Circuits, rankings: Mapping[str, Sequence[Component]], wanted: float, seed: int = 0
) -> dict[str, Smallest]:
    """The smallest circuit of each ranking that keeps a share: the grid first, then by halving.

    Between two sizes of the grid faithfulness is taken to rise; where it does not, another size may
    do as well. All components keep everything, so there always is one.

    Args:
        circuits: Judged prompts.
        rankings: Components by name of the method, the best first.
        wanted: Share of the whole model's metric.
        seed: Resamples the prompts.
    """
    total = len(next(iter(rankings.values())))
    tried = {name: sorted(set(sizes(total))) for name in rankings}
    curves = {name: circuits.shares(r, tried[name]) for name, r in rankings.items()}
    while True:
        middle = {}
        for name in rankings:
            first = _first(tried[name], curves[name].mean(1), wanted)
            below = max((k for k in tried[name] if k < first), default=0)
            if first - below > max(1, FINE * total):
                middle[name] = (first + below) // 2
        if not middle:
            break
        some = circuits.values([rankings[name][:size] for name, size in middle.items()])
        for (name, size), value in zip(middle.items(), some, strict=True):
            at = int(np.searchsorted(tried[name], size))
            tried[name].insert(at, size)
            share = (value / circuits.whole.mean()).double().numpy()
            curves[name] = np.insert(curves[name], at, share, axis=0)
    rows, found = circuits.resampled(seed), {}
    whole = circuits.whole.double().numpy()
    scale = whole.mean() / whole[rows].mean(1)  # a resample has a whole model's mean of its own
    for name in rankings:
        means = curves[name][:, rows].mean(2) * scale  # [size, draw]
        counts = np.array([_first(tried[name], curve, wanted) for curve in means.T])
        own = means[tried[name].index(counts[0])]
        found[name] = Smallest(
            *(
                Interval(x[0].item(), *np.quantile(x[1:], (0.025, 0.975)).tolist())
                for x in (counts.astype(float), own)
            )
        )
    return found


def _first(tried: Sequence[int], curve: np.ndarray, wanted: float) -> int:
    """The smallest size where a curve ``[size]`` is at a height; the largest if it never is."""
    there = np.flatnonzero(curve >= wanted)
    return tried[int(there[0])] if len(there) else tried[-1]


def agreement(values: np.ndarray, exact: np.ndarray, share: float = 0.1) -> dict[str, float]:
    """How far scores agree with exact effects, both ``[component]``.

    Returns:
        ``spearman``, the rank correlation (NaN where either does not vary), and ``recall``, the
        share of the largest exact effects (a tenth, three at least) that are among as many largest
        scores.
    """
    n = max(min(3, len(exact)), round(share * len(exact)))
    top = [set(np.argsort(-x, kind="stable")[:n]) for x in (values, exact)]
    varies = np.ptp(values) > 0 and np.ptp(exact) > 0
    rho = float(spearmanr(values, exact).statistic) if varies else float("nan")
    return {"spearman": rho, "recall": len(top[0] & top[1]) / n}


def auroc(values: np.ndarray, works: np.ndarray) -> float:
    """How often a working component's score is larger than an idle one's (ties count half).

    Args:
        values: Scores ``[component]``; their size counts, since some parts work against the answer.
        works: Whether each component works.
    """
    size = np.abs(values)
    right, wrong = size[works], size[~works]
    return float(mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong)))

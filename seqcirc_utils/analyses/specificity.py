"""How specific and how stable rankings of components are: contrasts, overlaps, frequencies."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binom

from seqcirc_utils.statistics import Interval, rate

DRAWS = 1000
"""Resamples of the prompts behind an interval of a contrast."""

SURE = 0.8
"""A component is in when the interval of its inclusion frequency lies above this, and out when it
lies below 1 minus this; else it is uncertain."""

PARTS = ("general", "template", "sequence")
"""What a shared component is: also in the circuits of more than half of the outside tasks; else
also in the circuit of repeating, in the same sentences; in neither."""


def strongest(scores: np.ndarray, size: int) -> np.ndarray:
    """Which components have the highest mean score ``[component]``; ties by the model's order.

    Args:
        scores: By component and prompt ``[component, n]``.
        size: How many.
    """
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores.mean(1), kind="stable")[:size]] = True
    return chosen


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Shared components over all in either; both ``[component]``."""
    return float((first & second).sum() / (first | second).sum())


def chance(size: int, total: int) -> float:
    """About the overlap of two random sets of a size: its expected members over the rest."""
    shared = size * size / total
    return shared / (2 * size - shared)


def split_overlaps(
    first: np.ndarray,
    second: np.ndarray | None,
    size: int,
    repeats: int,
    seed: int,
    *,
    same_prompts: bool = False,
) -> np.ndarray:
    """Overlap of circuits found on half of each task's prompts ``[repeat]``.

    Every comparison has as many prompts on either side, so that all have the same noise: between
    halves of one task it is the most that two tasks could reach.

    Args:
        first: Scores of one task ``[component, n]``.
        second: Those of another ``[component, m]``; the other half of the first when ``None``.
        same_prompts: Both are of the same prompts (two metrics): the halves have none in common.
        size: Components in a circuit.
        repeats: How many random halves.
        seed: Draws them.
    """
    rng = np.random.default_rng(seed)
    other = first if second is None else second
    half = min(first.shape[1], other.shape[1]) // 2
    found = []
    for _ in range(repeats):
        rows = rng.permutation(first.shape[1])
        apart = second is None or same_prompts
        rest = rows[half:] if apart else rng.permutation(other.shape[1])
        parts = first[:, rows[:half]], other[:, rest[:half]]
        found.append(jaccard(*(strongest(part, size) for part in parts)))
    return np.array(found)


def agreement(
    first: np.ndarray, second: np.ndarray, size: int, repeats: int, seed: int
) -> tuple[float, float]:
    """How far two rankings of one task's prompts find one circuit, and its variance over prompts.

    Args:
        first: Scores by one metric ``[component, n]``.
        second: Scores by another, on the same prompts.
        size: Components in a circuit.
        repeats: How many random halves.
        seed: Draws them.

    Returns:
        The overlap of circuits by the two, on half of the prompts each, as a share of the mean
        overlap that either has with itself, all beyond :func:`chance`; NaN where that is nothing.
        The variance is the jackknife's, of leaving out one prompt; the noise of the random halves
        adds to it. NaN with fewer than three prompts.
    """
    beyond = chance(size, len(first))

    def share(kept: list[int]) -> float:
        one, two = first[:, kept], second[:, kept]
        both, *own = (
            split_overlaps(*pair, size, repeats, seed, same_prompts=True).mean() - beyond
            for pair in ((one, two), (one, None), (two, None))
        )
        most = sum(own) / 2
        return float(both / most) if most > 0 else float("nan")

    prompts = list(range(first.shape[1]))
    n = len(prompts)
    if n < 3:  # without one of them there are no halves
        return share(prompts), float("nan")
    without = np.array([share(prompts[:i] + prompts[i + 1 :]) for i in prompts])
    return share(prompts), float((n - 1) / n * ((without - without.mean()) ** 2).sum())


def middle(values: np.ndarray) -> Interval:
    """Mean of repeats with the range of the middle 95%."""
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def resampled(scores: np.ndarray, size: int, repeats: int, seed: int) -> np.ndarray:
    """Circuits found on resampled prompts ``[repeat, component]``.

    Args:
        scores: By component and prompt ``[component, n]``.
        size: Components in a circuit.
        repeats: How many resamples.
        seed: Draws them.
    """
    n = scores.shape[1]
    rows = np.random.default_rng(seed).integers(n, size=(repeats, n))
    return np.array([strongest(scores[:, some], size) for some in rows])


def pairwise(found: np.ndarray) -> np.ndarray:
    """Overlap of each pair of circuits of one size ``[repeat, component]``: ``[pair]``."""
    shared = found.astype(int) @ found.T.astype(int)
    union = found.sum(1)[:, None] + found.sum(1)[None] - shared
    return (shared / union)[np.triu_indices(len(found), 1)]


def inclusion(found: np.ndarray) -> list[tuple[Interval, str]]:
    """How often each component is in, with an exact 95% interval over repeats, and its class.

    Args:
        found: Circuits of the repeats ``[repeat, component]``.

    Returns:
        By component the frequency and ``in``, ``out`` or ``uncertain``; see :data:`SURE`.
    """
    by_count: dict[int, tuple[Interval, str]] = {}
    repeats, counts = len(found), found.sum(0).tolist()
    for count in set(counts):
        share = rate(torch.arange(repeats) < count)
        low, high = share.low >= SURE, share.high <= 1 - SURE
        by_count[count] = share, "in" if low else "out" if high else "uncertain"
    return [by_count[count] for count in counts]


def stability(found: np.ndarray, names: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """How alike circuits of repeats are, and how often each component is in them.

    Args:
        found: Circuits of the repeats ``[repeat, component]``.
        names: The components' names.

    Returns:
        A row per component that ever is in (``component``, ``share``, its bounds, ``verdict``);
        ``mean``, ``low`` and ``high`` of the pairwise overlap, counts of ``in`` and ``uncertain``.
    """
    classes = inclusion(found)
    rows = [
        [name, share.mean, share.low, share.high, verdict]
        for name, (share, verdict) in zip(names, classes, strict=True)
        if share.mean > 0
    ]
    verdicts = [verdict for _, verdict in classes]
    counts = {kind: verdicts.count(kind) for kind in ("in", "uncertain")}
    columns = ["component", "share", "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=columns), vars(middle(pairwise(found))) | counts


def shared_parts(
    sequences: Sequence[np.ndarray], repeat: Sequence[np.ndarray], outside: Sequence[np.ndarray]
) -> tuple[np.ndarray, dict[str, float]]:
    """What each component in all sequence tasks' circuits is; see :data:`PARTS`.

    Args:
        sequences: Circuits of these tasks, each ``[component]``.
        repeat: That of repeating, if there is one.
        outside: Those of outside tasks, at least one.

    Returns:
        A name by component (empty where it is not shared), and how many of the shared components
        would be in each part if the other circuits were random ones of their size.
    """
    shared = np.logical_and.reduce(sequences)
    general = np.mean(outside, axis=0) > 0.5
    template = ~general & (repeat[0] if len(repeat) else False)
    which = np.where(shared, np.select([general, template], PARTS[:2], PARTS[2]), "")
    often = float(binom.sf(len(outside) // 2, len(outside), np.mean(outside)))
    repeated = (1 - often) * float(np.mean(repeat[0]) if len(repeat) else 0.0)
    odds = (often, repeated, 1 - often - repeated)
    return which, {part: float(shared.sum() * p) for part, p in zip(PARTS, odds, strict=True)}


def contrast(
    values: Mapping[str, np.ndarray],
    whole: Mapping[str, np.ndarray],
    triples: Sequence[tuple[int, str, Sequence[str]]],
    seed: int,
) -> Interval:
    """A set's share of its own task minus the mean on others, with a 95% interval over prompts.

    Args:
        values: Task to scores by set and prompt ``[set, n]``.
        whole: Task to the whole model's scores ``[n]``.
        triples: Row of the set, its own task, the other tasks; the mean over these is taken.
        seed: Resamples the prompts, as in :func:`combined`.
    """
    terms = []
    for row, own, others in triples:
        terms.append((1 / len(triples), own, row))
        terms += [(-1 / len(triples) / len(others), task, row) for task in others]
    return combined(values, whole, terms, seed)


def combined(
    values: Mapping[str, np.ndarray],
    whole: Mapping[str, np.ndarray],
    terms: Sequence[tuple[float, str, int]],
    seed: int,
) -> Interval:
    """A weighted sum of sets' shares of tasks, with a 95% interval over prompts.

    A share is a mean score over the whole model's. Prompts of each task are resampled by
    themselves, and alike for all sets and the whole model; draws in which the whole model's mean is
    not positive are left out.

    Args:
        values: Task to scores by set and prompt ``[set, n]``; tasks may have other sets.
        whole: Task to the whole model's scores ``[n]``.
        terms: Weight, task, and row of the set.
        seed: Resamples the prompts.
    """
    rng = np.random.default_rng(seed)
    draws = {}
    for task, table in values.items():
        n = table.shape[1]
        rows = np.concatenate([np.arange(n)[None], rng.integers(n, size=(DRAWS, n))])
        below = whole[task][rows].mean(1)  # [1 + draw]
        draws[task] = table[:, rows].mean(2) / np.where(below > 0, below, np.nan)  # [set, 1 + draw]
    found = sum((weight * draws[task][row] for weight, task, row in terms), np.zeros(1 + DRAWS))
    low, high = np.nanquantile(found[1:], (0.025, 0.975))
    return Interval(float(found[0]), float(low), float(high))


def nearest(values: Mapping[int, float], wanted: float) -> int:
    """The size whose value is nearest to the one that is wanted; of two, the smaller size."""
    return min(values, key=lambda size: (abs(values[size] - wanted), size))

"""What each circuit does on each task, kept alone or ablated."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.components import Component, by_kind
from seqcirc_utils.errors import unknown
from seqcirc_utils.statistics import percentile_p, positive_baseline, ratios

MODES = ("kept", "ablated", "heads")
"""A set kept alone; ablated; only its heads ablated. A circuit with many of the MLPs is necessary
to almost anything, a random one too; so the last is the fairer test of necessity."""


def transfer(
    evaluators: Mapping[str, Evaluator],
    sets: Mapping[Any, Iterable[Component]],
    seed: int = 0,
    *,
    modes: Sequence[str] = MODES,
    progress: str | None = None,
) -> pd.DataFrame:
    """Each set kept alone (sufficiency) and ablated (necessity) on each task.

    Args:
        evaluators: Task to evaluator.
        sets: Name to components.
        seed: Draws the bootstrap.
        modes: Of :data:`MODES`.
        progress: Label of the progress bars.

    Returns:
        Columns ``mode``, ``set``, ``task``, ``mean``, ``low``, ``high``: share of the whole model's
        mean logit difference, with the 95% interval over prompts (resampled for both together).

    Raises:
        UserError: when the whole model's mean logit difference on a task is not positive, or for
            an unknown mode.
    """
    rows = []
    for mode in modes:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
    for task, evaluator in evaluators.items():
        positive_baseline(evaluator.intact.logit_diff, f"the whole model on {task}")
        for mode in modes:
            some = [by_kind(set(s))["heads"] if mode == "heads" else set(s) for s in sets.values()]
            label = progress and f"{progress}: {task}, {mode}"
            if not some:
                continue
            gone = evaluator.outside(some) if mode == "kept" else some
            scores = evaluator.differences(gone, progress=label)
            shares = ratios(scores, evaluator.intact.logit_diff, seed)
            means, lows, highs = (v.tolist() for v in shares)
            for name, *values in zip(sets, means, lows, highs, strict=True):
                rows.append([mode, name, task, *values])
    return pd.DataFrame(rows, columns=["mode", "set", "task", "mean", "low", "high"])


def against_random(
    evaluators: Mapping[str, Evaluator],
    circuits: Mapping[str, Iterable[Component]],
    random: Mapping[str, Mapping[str, Sequence[Iterable[Component]]]],
    *,
    modes: Sequence[str] = ("kept", "heads"),
    progress: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each circuit beside random ones, on the same prompts.

    Args:
        evaluators: Task to evaluator.
        circuits: Name to circuit.
        random: Kind of random circuit to circuit name to draws.
        modes: Of :data:`MODES`.
        progress: Label of the progress bars.

    Returns:
        One row per draw (``mode``, ``circuit``, ``kind``, ``draw``, ``task``, ``mean``), and one
        per comparison (``mode``, ``circuit``, ``kind``, ``task``, ``value`` of the circuit,
        ``random`` mean, ``p``: that a random one keeps as much, or that ablating it costs as much).
    """
    sets = {(name, "", -1): set(circuit) for name, circuit in circuits.items()}
    for kind, drawn in random.items():
        for name, draws in drawn.items():
            sets |= {(name, kind, i): set(draw) for i, draw in enumerate(draws)}
    found = transfer(evaluators, sets, modes=modes, progress=progress)
    for i, column in enumerate(("circuit", "kind", "draw")):
        found[column] = [key[i] for key in found["set"]]
    own = found[found["draw"] == -1].set_index(["mode", "circuit", "task"])["mean"]
    draws = found[found["draw"] != -1]
    rows = []
    for key, group in draws.groupby(["mode", "circuit", "kind", "task"], sort=False):
        mode, circuit, kind, task = key
        value, null = own[mode, circuit, task], group["mean"].to_numpy()
        sign = 1 if mode == "kept" else -1
        p = percentile_p(sign * value, sign * null)
        rows.append([mode, circuit, kind, task, value, null.mean(), p])
    columns = ["mode", "circuit", "kind", "draw", "task", "mean"]
    names = ["mode", "circuit", "kind", "task", "value", "random", "p"]
    return draws[columns].reset_index(drop=True), pd.DataFrame(rows, columns=names)

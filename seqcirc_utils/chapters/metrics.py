"""What of the circuits depends on the metric: four of them find, and each judges what all found.

Written before any result was seen: two metrics find *the same* circuit if their overlap, beyond
chance, is at least :data:`SAME` of what halves of one task's prompts reach under one metric, and
*another* one below :data:`OTHER`. A head serves the logit difference *only* if its ablation costs
that (the whole interval below 0), and neither the answer's log probability nor its lead over the
other members. Made stricter after a first run: the whole interval of the overlap must lie there,
and the intervals of the other two metrics must exclude a loss above :data:`NEGLIGIBLE`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from scipy.stats import t

from seqcirc_utils.analyses import overlap, specificity
from seqcirc_utils.chapters import metric_tasks
from seqcirc_utils.chapters.component_roles import ComponentRoles
from seqcirc_utils.chapters.findings import Findings, each, table
from seqcirc_utils.chapters.metric_tasks import (
    DIFFERENCE,
    METRICS,
    RANKED,
    SEARCHED,
    Found,
    Task,
)
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits.chance import random_like
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import section
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.statistics import intervals, rate, ratios

SAME, OTHER = 0.8, 0.5
"""Shares of the overlap of halves, beyond chance: see the module."""
NEGLIGIBLE = 0.02
"""The largest loss, as a share of whole - empty, that counts as none."""
SIZES = (0.02, 0.04, 0.08, 0.12, 0.2, 0.35, 0.6)
"""Shares of all components at which circuits are tried."""
RANDOM = "random heads, same layers"
_INTERVAL = each(float, "mean", "low", "high")


@dataclass(frozen=True, kw_only=True)
class Metrics(Findings):
    """Circuits found by four metrics, and judged by all of them on prompts that found none.

    Each metric's circuit is found in two ways, ``way``: *ranked*, all of one size, and *searched*
    until no component can go.

    What a circuit keeps is (circuit - empty) / (whole - empty), in the metric that judges; the
    empty circuit has everything mean-ablated. Intervals are 95%, over prompts (resampled above and
    below the line; of accuracies the exact ones); of overlaps the middle 95% of repeats.

    Attributes:
        circuits: Each circuit's ``members``.
        judged: What each metric's circuit keeps by each metric, by ``task``, and random ones like
            the first metric's; in ``judge`` also ``accuracy`` and ``published ratio`` (logit
            difference, circuit / whole).
        sizes: By task and metric the smallest circuit tried that keeps ``threshold`` by the metric
            that ranked it; -1 where none of those tried does.
        overlap: Jaccard of circuits found on halves of the prompts: of one metric (``first`` is
            ``second``) or of two.
        agreement: The ``share`` by which two metrics' circuits overlap as those of one metric do,
            beyond chance, mean over tasks, with a 95% interval over the prompts that rank (the
            jackknife's, by Student's t).
        shared: By metric, how many components all tasks' circuits share, the number expected of
            random circuits, its ``p``, the same of random circuits with as many components in each
            layer (``layer_expected``, ``layer_p``, and the middle 95% of what chance gives,
            ``layer_low`` to ``layer_high``), and how many of those shared by the logit difference
            are among them.
        transfer: What the circuit of another task, ``circuit``, keeps of a task, both by one
            metric.
        effects: What mean-ablating a component alone changes in each metric, as a share of whole -
            empty, for the components that matter most by the logit difference or are shared.
        roles: By metric and task the number of the circuit's components with each role.
        stay: By way the components that all tasks share under every metric that none lacks.
        chance: Jaccard of random circuits of the ranked size.
        n_kept: Components of a ranked circuit.
        n_heads: Heads of the model.
        n_held: Prompts of a task that judge.
        n_ranked: Prompts of a task that rank.
        n_searched: How many of these circuits are searched on; 0: none is searched.
        threshold: What the smallest circuit and a searched one must keep.
        title: The model's title.
        left_out: Tasks and metrics that are not compared, and why.
        missing: Sections that do not apply, and why.
    """

    stage = "15_metrics"

    circuits: pd.DataFrame = table("circuits.csv", each(str, "way", "task", "metric", "members"))
    judged: pd.DataFrame = table(
        "judged.csv", each(str, "way", "task", "circuit", "judge") | _INTERVAL
    )
    sizes: pd.DataFrame = table("sizes.csv", {"task": str, "metric": str, "size": int})
    overlap: pd.DataFrame = table("overlap.csv", each(str, "task", "first", "second") | _INTERVAL)
    agreement: pd.DataFrame = table(
        "agreement.csv", each(str, "first", "second") | each(float, "share", "low", "high")
    )
    shared: pd.DataFrame = table(
        "shared.csv",
        {"way": str, "metric": str, "shared": int, "expected": float, "p": float}
        | {"layer_expected": float, "layer_p": float, "layer_low": int, "layer_high": int}
        | {"kept": int},
    )
    transfer: pd.DataFrame = table(
        "transfer.csv", each(str, "way", "task", "circuit", "metric") | _INTERVAL
    )
    effects: pd.DataFrame = table(
        "effects.csv", each(str, "task", "component", "metric") | _INTERVAL
    )
    roles: pd.DataFrame = table("roles.csv", each(str, "way", "task", "metric", "role"), n=int)
    stay: dict[str, list[str]]
    chance: float
    n_kept: int
    n_heads: int
    n_held: int
    n_ranked: int
    n_searched: int
    threshold: float
    title: str
    left_out: dict[str, str]
    missing: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Find by each metric and judge by all; see the class.

        Raises:
            CannotDo: where no task can be done.
        """
        everything = components(at.model)
        size = max(1, round(at["share_kept"] * len(everything)))
        left_out: dict[str, str] = {}
        missing: dict[str, str] = {}
        tasks = metric_tasks.compared(at, left_out)
        found = {
            RANKED: metric_tasks.ranked(tasks, everything, size),
            SEARCHED: metric_tasks.searched(at, tasks, left_out),
        }
        shape = at.model.n_layers, at.model.n_heads
        stay = {way: _shared(one, list(tasks), *shape)[1] for way, one in found.items()}
        roles = cls.empty("roles")
        with section(missing, "roles"):
            roles = _by_way(found, lambda one: _roles(at, one))
        effects = [_effects(at, t, one, found[RANKED], stay[RANKED]) for t, one in tasks.items()]
        return cls(
            circuits=_by_way(found, _members),
            judged=_by_way(found, lambda one: _judged(at, tasks, one)),
            sizes=pd.DataFrame([row for t, one in tasks.items() for row in _sizes(at, t, one)]),
            overlap=_overlaps(at, tasks, size),
            agreement=_agreement(at, tasks, size),
            shared=_by_way(found, lambda one: _shared(one, list(tasks), *shape)[0]),
            transfer=_by_way(found, lambda one: _transfer(at, tasks, one)),
            effects=pd.concat(effects, ignore_index=True),
            roles=roles,
            stay=stay,
            chance=specificity.chance(size, len(everything)),
            n_kept=size,
            n_heads=at.model.n_layers * at.model.n_heads,
            n_held=at["n_held"],
            n_ranked=at["n_ranked"],
            n_searched=min(at["n_searched"], at["n_ranked"]),
            threshold=at["threshold"],
            title=at.model.facts.title,
            left_out=left_out,
            missing=missing,
        )


def _by_way(found: Mapping[str, Found], rows: Callable[[Found], pd.DataFrame]) -> pd.DataFrame:
    """The rows of each way of finding circuits, ``way`` first."""
    parts = [rows(one) for one in found.values()]
    for way, part in zip(found, parts, strict=True):
        part.insert(0, "way", way)
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def _columns(name: str) -> list[str]:
    """A table's columns but for the way."""
    return list(Metrics.empty(name))[1:]


def _members(found: Found) -> pd.DataFrame:
    rows = [[*of, " ".join(map(str, sorted(circuit)))] for of, circuit in found.items()]
    return pd.DataFrame(rows, columns=_columns("circuits"))


def _rows(bounds: Iterable[torch.Tensor]) -> list[list[float]]:
    """Mean and bounds by row, from means, lower and upper bounds, each ``[row]``."""
    return [list(row) for row in zip(*(v.tolist() for v in bounds), strict=True)]


def _judged(at: Setting, tasks: Mapping[str, Task], found: Found) -> pd.DataFrame:
    """What each circuit of a task keeps by each metric."""
    everything, rows = components(at.model), []
    for task, one in tasks.items():
        circuits: dict[str, list[Any]] = {
            m: [found[task, m]] for m in one.metrics if (task, m) in found
        }
        if not circuits:
            continue
        like = next(iter(circuits.values()))[0]
        circuits[RANDOM] = random_like(like, everything, at["n_random"], at["seed"], by_layer=True)
        flat = [c for some in circuits.values() for c in some]
        values = one.values(one.judge.outside(flat), TASKS[task].title)
        told: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {
            metric: (values[metric] - one.empty[metric], one.span[metric]) for metric in one.metrics
        }
        told["accuracy"] = values["accuracy"], None
        if DIFFERENCE in values:
            told["published ratio"] = values[DIFFERENCE], one.judge.intact.logit_diff
        for judge, (over, under) in told.items():
            parts = over.split([len(some) for some in circuits.values()])
            means = torch.stack([part.mean(0) for part in parts])  # [circuit, n]
            bounds = (
                _accuracy(means, at["seed"])
                if under is None
                else _rows(ratios(means, under, at["seed"]))
            )
            rows += [[task, name, judge, *b] for name, b in zip(circuits, bounds, strict=True)]
    return pd.DataFrame(rows, columns=_columns("judged"))


def _accuracy(means: torch.Tensor, seed: int) -> list[list[float]]:
    """Share of prompts answered and its bounds by row of ``[circuit, n]``.

    Exact (Clopper-Pearson) where each prompt is right or wrong; the bootstrap, which four right
    answers of four leave no width, only for means over random circuits.
    """
    bounds = _rows(intervals(means, seed))
    for row, answered in enumerate(means):
        if set(answered.tolist()) <= {0.0, 1.0}:
            bounds[row] = list(vars(rate(answered.bool())).values())
    return bounds


def _sizes(at: Setting, task: str, one: Task) -> list[dict[str, Any]]:
    """The smallest circuit tried that keeps the threshold, by the metric that ranked it."""
    everything, rows = components(at.model), []
    sizes = [max(1, round(share * len(everything))) for share in SIZES]
    for metric, scores in one.scores.items():
        circuits = [metric_tasks.strongest(everything, scores, size) for size in sizes]
        values = one.values(one.judge.outside(circuits), f"Sizes, {TASKS[task].title.lower()}")
        kept = one.kept(metric, values[metric]).mean(1).tolist()
        enough = [size for size, share in zip(sizes, kept, strict=True) if share >= at["threshold"]]
        rows.append({"task": task, "metric": metric, "size": min(enough, default=-1)})
    return rows


def _overlaps(at: Setting, tasks: Mapping[str, Task], size: int) -> pd.DataFrame:
    """Overlaps of circuits found on halves of the prompts, by one metric and by two."""
    rows = []
    for task, one in tasks.items():
        pairs = [(m, m) for m in one.scores] + list(combinations(one.scores, 2))
        for first, second in pairs:
            other = None if first == second else one.scores[second]
            options = size, at["n_resampled"], at["seed"]
            found = specificity.split_overlaps(
                one.scores[first], other, *options, same_prompts=True
            )
            rows.append([task, first, second, *vars(specificity.middle(found)).values()])
    return pd.DataFrame(rows, columns=list(Metrics.empty("overlap")))


def _agreement(at: Setting, tasks: Mapping[str, Task], size: int) -> pd.DataFrame:
    """How far two metrics find the same circuits, with an interval over prompts."""
    rows = []
    options = size, at["n_resampled"], at["seed"]
    for first, second in combinations(METRICS, 2):
        told = [
            specificity.agreement(one.scores[first], one.scores[second], *options)
            for one in tasks.values()
            if first in one.scores and second in one.scores
        ]
        told = [pair for pair in told if not np.isnan(pair[0])]
        if told:
            share, variance = np.mean(told, 0)
            # Tasks have prompts of their own, so their variances add.
            freedom = len(told) * (at["n_ranked"] - 1)
            half = t.ppf(0.975, freedom) * np.sqrt(variance / len(told))
            rows.append([first, second, share, share - half, share + half])
    return pd.DataFrame(rows, columns=list(Metrics.empty("agreement")))


def _shared(
    found: Found, tasks: list[str], n_layers: int, n_heads: int
) -> tuple[pd.DataFrame, list[str]]:
    """What all tasks share by each metric, and what they share by every metric."""
    by_metric, rows = {}, []
    for metric in METRICS:
        circuits = [found[task, metric] for task in tasks if (task, metric) in found]
        if len(circuits) == len(tasks) > 1:  # what fewer share is not what all share
            law = overlap.overlap(circuits, n_layers * (n_heads + 1))
            layered = overlap.layer_overlap(circuits, n_layers, n_heads)
            by_metric[metric] = set(law.shared)
            told = law.expected, law.p, layered.expected, layered.p, *layered.range
            rows.append([metric, len(law.shared), *told])
    stay = set.intersection(*by_metric.values()) if by_metric else set()
    first = by_metric.get(DIFFERENCE, set())
    rows = [[*row, len(by_metric[row[0]] & first)] for row in rows]
    frame = pd.DataFrame(rows, columns=_columns("shared"))
    return frame, [str(c) for c in sorted(stay)]


def _transfer(at: Setting, tasks: Mapping[str, Task], found: Found) -> pd.DataFrame:
    """What the other tasks' circuits keep of a task, each by the metric that found it."""
    rows = []
    for task, one in tasks.items():
        others = {(t, m): c for (t, m), c in found.items() if t != task and m in one.metrics}
        values = one.values(one.judge.outside(others.values()), f"Transfer, {TASKS[task].title}")
        for i, (other, metric) in enumerate(others):
            change = (values[metric][i] - one.empty[metric])[None]  # [1, n]
            (bounds,) = _rows(ratios(change, one.span[metric], at["seed"]))
            rows.append([task, other, metric, *bounds])
    return pd.DataFrame(rows, columns=_columns("transfer"))


def _effects(
    at: Setting,
    task: str,
    one: Task,
    found: Found,
    stay: Iterable[str],
) -> pd.DataFrame:
    """What each of some components' ablation alone changes by each metric."""
    everything = components(at.model)
    chosen = {Component.parse(name) for name in stay}
    if DIFFERENCE in one.scores:
        chosen |= metric_tasks.strongest(everything, one.scores[DIFFERENCE], at["n_top"])
        shared = [c for (_, m), c in found.items() if m == DIFFERENCE]
        chosen |= set.intersection(*shared)
    listed = sorted(chosen)
    values = one.values([[], *([c] for c in listed)], f"Effects, {TASKS[task].title.lower()}")
    rows = []
    for metric in one.metrics:
        change = values[metric][1:] - values[metric][0]
        told = _rows(ratios(change, one.span[metric], at["seed"]))
        for name, bounds in zip(listed, told, strict=True):
            rows.append([task, str(name), metric, *bounds])
    return pd.DataFrame(rows, columns=list(Metrics.empty("effects")))


def _roles(at: Setting, found: Found) -> pd.DataFrame:
    """How many components of each circuit have each role.

    Raises:
        UserError: where roles cannot be told.
    """
    rows = []
    for (task, metric), circuit in found.items():
        roles = at.read(ComponentRoles, task).by_component()
        counted = pd.Series([roles[c] for c in sorted(circuit)]).value_counts()
        rows += [[task, metric, role, n] for role, n in counted.items()]
    return pd.DataFrame(rows, columns=_columns("roles"))

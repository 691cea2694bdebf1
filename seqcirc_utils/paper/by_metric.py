"""Which verdicts on circuits would be others under another metric than the logit difference.

Four claims need no more than a metric's own circuits and what they keep of it: C1, C2, C7 and C8.
Their limits are those of :mod:`~seqcirc_utils.paper.carried_circuits`. What circuits keep is
(circuit - empty) / (whole - empty), which every metric has. Ranked circuits have a size that was
set; of searched ones C1 also asks that they are small, as the claim does. These rules were written
before any of their results was seen.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import pandas as pd

from seqcirc_utils.chapters.metric_tasks import METRICS, SEARCHED, WAYS
from seqcirc_utils.chapters.metrics import Metrics
from seqcirc_utils.errors import UserError
from seqcirc_utils.paper import carried_circuits
from seqcirc_utils.paper.effects import CARRIED, Effect, verdict
from seqcirc_utils.paper.estimates import Estimate
from seqcirc_utils.paper.evidence import NOT_TESTED
from seqcirc_utils.prompts.sequences import TASKS

COLUMNS = ["claim", "statement", "way", "metric", "verdict", "effects"]


def by_metric(found: Metrics) -> pd.DataFrame:
    """Judge the claims by each metric, on the circuits of both ways.

    Returns:
        A row per claim, way and metric: ``claim``, ``statement``, ``way``, ``metric``, ``verdict``
        and the ``effects`` it rests on, or why there are none.
    """
    rows = []
    for claim, (statement, effects) in _RULES.items():
        limits = CARRIED[claim].limits
        for way, metric in product(WAYS, METRICS):
            try:
                judged = effects(found, way, metric, limits)
                told = [verdict(judged), "; ".join(map(str, judged))]
            except UserError as error:
                told = [NOT_TESTED, str(error)]
            rows.append([claim, statement.format(**limits), way, metric, *told])
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(table: pd.DataFrame, **wanted: str) -> pd.Series:
    """The row of some values.

    Raises:
        UserError: where there is none.
    """
    for column, value in wanted.items():
        table = table[table[column] == value]
    if table.empty:
        raise UserError(f"nothing was measured of {', '.join(wanted.values())}.")
    return table.iloc[0]


def _percent(found: Metrics, row: pd.Series) -> Estimate:
    return Estimate.of((100 * row[k] for k in ("mean", "low", "high")), found.n_held)


Limits = Mapping[str, float]


def _small(found: Metrics, way: str, metric: str, limits: Limits) -> list[Effect]:
    effects = []
    for task in found.judged["task"].unique():
        row = _row(found.judged, way=way, task=task, circuit=metric, judge=metric)
        effects.append(Effect(f"{task}, % kept", _percent(found, row), limits["least"]))
        if way == SEARCHED:
            members = _row(found.circuits, way=way, task=task, metric=metric)["members"].split()
            heads = sum(not name.startswith("mlp") for name in members)
            share = Estimate.counted(100 * heads / found.n_heads)
            effects.append(Effect(f"{task}, % of heads", share, limits["most"], least=False))
    return effects


def _shared(found: Metrics, way: str, metric: str, limits: Limits) -> list[Effect]:
    row = _row(found.shared, way=way, metric=metric)
    beyond = (row["shared"] - row[k] for k in ("layer_expected", "layer_high", "layer_low"))
    return [Effect("shared beyond chance", Estimate.of(beyond, 0), limits["least"])]


def _more(
    *pairs: tuple[tuple[str, str], tuple[str, str]],
) -> Callable[[Metrics, str, str, Limits], Sequence[Effect]]:
    """How much more one circuit does of a task than another of another, for each pair of both."""

    def effects(found: Metrics, way: str, metric: str, limits: Limits) -> list[Effect]:
        def does(circuit: str, task: str) -> Estimate:
            row = _row(found.transfer, way=way, circuit=circuit, task=task, metric=metric)
            return _percent(found, row)

        return [
            Effect(f"{one[0]} on {one[1]} less {other[0]} on {other[1]}", gap, limits["least"])
            for one, other in pairs
            for gap in [does(*one).minus(does(*other))]
        ]

    return effects


_DIGITS, _WORDS, _MONTHS = carried_circuits.TASKS
_RULES: dict[str, tuple[str, Callable[[Metrics, str, str, Limits], Sequence[Effect]]]] = {
    "C1": (
        "A small circuit keeps at least {least:g}% of each task; a searched one has at most "
        "{most:g}% of the heads.",
        _small,
    ),
    "C2": (
        "The tasks' circuits share at least {least:g} more components than random circuits with as "
        "many in each layer do.",
        _shared,
    ),
    "C7": (
        f"The circuits of {TASKS[_DIGITS].title.lower()} and of {TASKS[_WORDS].title.lower()} do "
        f"at least {{least:g}} points more of {TASKS[_MONTHS].title.lower()} than its circuit does "
        "of them.",
        _more(
            ((_DIGITS, _MONTHS), (_MONTHS, _DIGITS)),
            ((_WORDS, _MONTHS), (_MONTHS, _WORDS)),
        ),
    ),
    "C8": (
        f"The circuit of {TASKS[_WORDS].title.lower()} does at least {{least:g}} points more of "
        f"{TASKS[_DIGITS].title.lower()} than the other way round.",
        _more(((_WORDS, _DIGITS), (_DIGITS, _WORDS))),
    ),
}

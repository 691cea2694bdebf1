"""Figures, tables and sentences of the chapter on the metric."""

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from seqcirc_utils.chapters.metric_tasks import (
    DIFFERENCE,
    KL,
    LEAD,
    LOG_PROB,
    METRICS,
    RANKED,
    SEARCHED,
    WAYS,
)
from seqcirc_utils.chapters.metrics import NEGLIGIBLE, OTHER, SAME, Metrics
from seqcirc_utils.components import Component
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import OKABE_ITO, bounded, closed, in_short, many
from seqcirc_utils.paper.by_metric import by_metric
from seqcirc_utils.paper.effects import VERDICTS
from seqcirc_utils.paper.evidence import NOT_TESTED
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.statistics import short

WORDS = {
    DIFFERENCE: "answer − last member",
    LOG_PROB: "log probability of the answer",
    LEAD: "answer − mean of the other members",
    KL: "closeness to the whole model (−KL)",
}
"""The metrics in words."""


def _outcome(low: float, high: float) -> str:
    """What the rules call an overlap with such an interval."""
    if low >= SAME:
        return "the same"
    if high < OTHER:
        return "another"
    return "partly the same" if low >= OTHER and high < SAME else "undecided"


def _interval(low: float, high: float) -> str:
    return "no interval" if np.isnan(low) else f"{low:z.0%} to {high:z.0%}"


def only(found: Metrics) -> tuple[list[str], list[str]]:
    """Heads that serve the logit difference only, by the rule, and those that may, with tasks."""
    low, high = (
        found.effects.pivot(index=["task", "component"], columns="metric", values=bound)
        for bound in ("low", "high")
    )
    if not {DIFFERENCE, LOG_PROB, LEAD} <= set(low):
        return [], []
    rest = [LOG_PROB, LEAD]
    may = (high[DIFFERENCE] < 0) & (high[rest] >= 0).all(axis=1)
    sure = may & (low[rest] >= -NEGLIGIBLE).all(axis=1)
    named = [
        [f"{c} ({TASKS[t].title.lower()})" for t, c in low[rows].index if not c.startswith("mlp")]
        for rows in (sure, may & ~sure)
    ]
    return named[0], named[1]


def _of(table: pd.DataFrame, way: str) -> pd.DataFrame:
    """The rows of one way of finding circuits."""
    return table[table["way"] == way]


def _shared(found: Metrics, metric: str) -> int:
    rows = _of(found.shared, RANKED).set_index("metric")["shared"]
    return int(rows.get(metric, 0))


def _kept(found: Metrics) -> pd.Series:
    """What the logit difference's ranked circuits keep by each judge, mean over tasks."""
    rows = _of(found.judged, RANKED)
    rows = rows[rows["circuit"] == DIFFERENCE]
    return rows.groupby("judge", sort=False)["mean"].mean()


def _self(found: Metrics) -> float:
    """Overlap of two halves of the prompts, by the logit difference, mean over tasks."""
    rows = found.overlap
    return rows.loc[(rows["first"] == DIFFERENCE) & (rows["second"] == DIFFERENCE), "mean"].mean()


def headline(found: Metrics) -> Markdown:
    """The chapter's answer, whichever way it comes out."""
    kept, pairs, said = _kept(found), found.agreement, ""
    pairs = pairs[pairs["first"] == DIFFERENCE]
    if len(pairs):
        others = ", ".join(f"{kept[m]:.0%} ({m})" for m in pairs["second"] if m in kept)
        parts = "; ".join(
            f"{r.second} {r.share:.0%} ({_interval(r.low, r.high)}: {_outcome(r.low, r.high)})"
            for r in pairs.itertuples()
        )
        said = (
            f"Circuits ranked by the logit difference keep {kept[DIFFERENCE]:.0%} of it. "
            f"Judged by the other metrics, they keep {others}. They answer "
            f"{kept['accuracy']:.0%} of the prompts correctly. Circuits that one metric finds on "
            f"two halves of the prompts overlap by {_self(found):.2f} (Jaccard). Beyond chance, "
            f"circuits of the logit difference and of another metric reach of that: {parts}. "
        )
    right = _searched_answers(found)
    if {DIFFERENCE, LOG_PROB} <= set(right.index):
        said += (
            "Searched until no component can go, the logit difference's circuits answer "
            f"{right[DIFFERENCE]:.0%} of the prompts, and those of the answer's log probability "
            f"{right[LOG_PROB]:.0%}. "
        )
    return in_short(
        f"{said}Of the {_shared(found, DIFFERENCE)} components that all tasks share by the logit "
        f"difference, {len(found.stay[RANKED])} are shared by every metric."
    )


def numbers(found: Metrics) -> dict[str, str]:
    """What the book's first page quotes."""
    pairs, kept = found.agreement, _kept(found)
    pairs = pairs[pairs["first"] == DIFFERENCE]
    others = [kept[m] for m in (LOG_PROB, LEAD, KL) if m in kept and DIFFERENCE in kept]

    def span(values: list[float]) -> str:
        return f"{min(values):.0%} to {max(values):.0%}" if values else "none"

    verdicts, same = _verdicts(found, RANKED)
    others_too, same_too = _verdicts(found, SEARCHED)
    right = _searched_answers(found)
    told = {
        "verdicts": str(len(verdicts)),
        "verdicts-same": str(same.sum()),
        "searched-verdicts": str(len(others_too)),
        "searched-verdicts-same": str(same_too.sum()),
        "searched-answers": f"{right[DIFFERENCE]:.0%}" if DIFFERENCE in right else "none",
        "searched-answers-others": span(list(right.drop(DIFFERENCE, errors="ignore"))),
        "alike": span(list(pairs["share"])),
        "alike-interval": _interval(pairs["low"].min(), pairs["high"].max()),
        "kept": f"{kept[DIFFERENCE]:.0%}" if DIFFERENCE in kept else "none",
        "kept-others": span(others),
        "shared": str(_shared(found, DIFFERENCE)),
        "stay": str(len(found.stay[RANKED])),
    }
    return {f"metrics-{name}": value for name, value in told.items()}


def left_out_told(found: Metrics) -> Markdown:
    """What is not compared, and why."""
    if not found.left_out:
        return Markdown("No task and no metric is left out.")
    lines = [f"- {name}: {why}" for name, why in found.left_out.items()]
    return Markdown("Left out:\n\n" + "\n".join(lines))


def judged_map(found: Metrics, way: str = RANKED) -> Figure:
    """What each metric's circuit keeps by each metric, mean over tasks."""
    table = _of(found.judged, way).pivot_table(
        index="circuit", columns="judge", values="mean", aggfunc="mean", sort=False
    )
    return common.table_heatmap(100 * table, "kept (%)", ".0f", limit=150)


def judged_table(found: Metrics) -> pd.DataFrame:
    """What each ranked circuit keeps of each task by every metric, and its accuracy."""
    rows = []
    judged = _of(found.judged, RANKED)
    for (task, circuit), part in judged.groupby(["task", "circuit"], sort=False):
        told = {
            judge: f"{m:z.0%} [{low:z.0%}, {high:z.0%}]"
            for judge, m, low, high in part[["judge", "mean", "low", "high"]].itertuples(
                index=False
            )
        }
        rows.append({"task": TASKS[task].title, "ranked by": circuit, **told})
    return pd.DataFrame(rows).set_index("task").fillna("–")


def sizes_table(found: Metrics) -> pd.DataFrame:
    """The smallest circuit tried that keeps the threshold by its own metric."""
    table = found.sizes.pivot_table(index="metric", columns="task", values="size", sort=False)
    told = table.map(lambda v: "–" if np.isnan(v) else "none" if v < 0 else f"{v:.0f}")
    return told.rename(columns=lambda task: TASKS[task].title).rename_axis(columns=None)


def overlap_map(found: Metrics) -> Figure:
    """Overlap of circuits found on halves of the prompts, mean over tasks."""
    both = found.overlap.groupby(["first", "second"], sort=False)["mean"].mean()
    names = [first for first, second in both.index if first == second]
    grid = pd.DataFrame(np.nan, names, names)
    for (first, second), value in both.items():
        grid.loc[first, second] = grid.loc[second, first] = value
    return common.table_heatmap(grid, "Jaccard", ".2f", diverging=False, limit=1)


def shared_table(found: Metrics, way: str = RANKED) -> pd.DataFrame:
    """What all tasks share by each metric, beside chance."""
    rows = _of(found.shared, way)
    return pd.DataFrame(
        {
            "metric": rows["metric"],
            "shared": rows["shared"],
            "by chance": rows["expected"].map("{:.1f}".format),
            "p": rows["p"].map(short),
            "by chance, same layers": rows["layer_expected"].map("{:.1f}".format),
            "p, same layers": rows["layer_p"].map(short),
            "also shared by the logit difference": rows["kept"],
        }
    ).set_index("metric")


@forms.two_forms
def effects_dots(found: Metrics) -> Figure:
    """What the ablation of single components changes in each metric."""
    tasks = list(dict.fromkeys(found.effects["task"]))
    names = sorted(set(found.effects["component"]), key=Component.parse, reverse=True)
    size, phone = (9, 0.26 * len(names) + 1.4), len(tasks) * (0.17 * len(names) + 0.8) + 1
    figure, axes = forms.subplots(1, len(tasks), size=size, phone=phone, sharey=True)
    metrics = list(dict.fromkeys(found.effects["metric"]))
    for axis, task in zip(axes, tasks, strict=True):
        part = found.effects[found.effects["task"] == task]
        for i, metric in enumerate(metrics):
            rows = part[part["metric"] == metric]
            y = [names.index(c) + 0.24 * (1.5 - i) for c in rows["component"]]
            style = {
                "fmt": "os^D"[i % 4],
                "ms": 3.5,
                "lw": 0.8,
                "color": OKABE_ITO[i],
                "label": metric,
            }
            axis.errorbar(100 * rows["mean"], y, xerr=100 * common.spread(rows, "mean"), **style)
        axis.axvline(0, color="black", lw=0.6)
        axis.set_xscale("symlog", linthresh=5)
        axis.set_xticks([-100, -10, 0, 10, 100], ["−100", "−10", "0", "10", "100"])
        axis.set(title=TASKS[task].title, xlabel="change (%)")
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    ncols = forms.either(len(metrics), 2)
    figure.legend(handles, labels, loc="outside upper center", ncols=ncols, fontsize=8)
    return closed(figure)


def effects_told(found: Metrics) -> Markdown:
    """The heads that serve the logit difference only."""
    sure, may = only(found)
    heads = found.effects.loc[~found.effects["component"].str.startswith("mlp")]
    tried = len(heads[["task", "component"]].drop_duplicates())
    named, others = (f" ({', '.join(some)})" if some else "" for some in (sure, may))
    return Markdown(
        f"Heads that serve the logit difference only, of {tried} pairs of head and task: "
        f"**{len(sure)}**{named}. Without such a head the last member comes closer to the answer, "
        "and neither the answer's log probability nor its lead over the other members loses more "
        f"than {NEGLIGIBLE:.0%}. Not decided: {len(may)}{others}, where these do not fall clearly, "
        "but the interval allows a larger loss."
    )


@common.needs("roles")
def roles_table(found: Metrics) -> pd.DataFrame:
    """How many components of each metric's ranked circuit have each role, over the tasks."""
    table = _of(found.roles, RANKED).pivot_table(
        index="role", columns="metric", values="n", aggfunc="sum", fill_value=0, sort=False
    )
    return table.astype(int).rename_axis(columns=None)


def _circuits(found: Metrics) -> pd.Series:
    """Task and metric to the members of the searched circuit."""
    rows = _of(found.circuits, SEARCHED)
    return rows.set_index(["task", "metric"])["members"].str.split().map(set)


def _searched_answers(found: Metrics) -> pd.Series:
    """By metric the share of prompts that its searched circuits answer, mean over tasks."""
    rows = _of(found.judged, SEARCHED)
    rows = rows[(rows["judge"] == "accuracy") & rows["circuit"].isin(METRICS)]
    return rows.groupby("circuit", sort=False)["mean"].mean()


def searched_table(found: Metrics) -> pd.DataFrame | Markdown:
    """Each searched circuit, means first: size, what it keeps, and how many prompts it answers."""
    circuits = _circuits(found)
    if circuits.empty:
        return Markdown("No circuit was searched here.")
    judged = _of(found.judged, SEARCHED).set_index(["task", "circuit", "judge"])
    rows = []
    for (task, metric), members in circuits.items():
        heads = sum(not name.startswith("mlp") for name in members)
        row = {"task": TASKS[task].title, "searched by": metric}
        row |= {"components": f"{len(members)} ({many(heads, 'head')})"}
        columns = {"keeps of it": metric, "answers": "accuracy"}
        for title, judge in (columns | {"of the logit difference": DIFFERENCE}).items():
            known = (task, metric, judge) in judged.index
            values = judged.loc[(task, metric, judge), ["mean", "low", "high"]] if known else []
            row[title] = bounded(values) if known else "–"
        rows.append(row)
    sizes = circuits.map(len).groupby("metric", sort=False).mean()
    means = [
        {"task": "All, means", "searched by": metric, "components": f"{size:.0f}"}
        | {"answers": f"{right:.0%}"}
        for (metric, size), right in zip(sizes.items(), _searched_answers(found), strict=True)
    ]
    return pd.DataFrame([*means, *rows], columns=list(rows[0])).fillna("").set_index("task")


def searched_told(found: Metrics) -> Markdown:
    """What the searched circuits of all tasks share by every metric."""
    if _circuits(found).empty:
        return Markdown("")
    stay = found.stay[SEARCHED]
    named = f": {', '.join(stay)}" if 0 < len(stay) <= 12 else ""
    return Markdown(f"All tasks share {many(len(stay), 'component')} by every metric{named}.")


def verdict_table(found: Metrics) -> HTML:
    """Claims on circuits, judged by each metric."""
    rows = {}
    for r in by_metric(found).itertuples():
        own = {"claim": f"{r.claim}, {r.way} circuits. {r.statement}"}
        row = rows.setdefault((r.claim, r.way), own)
        row[r.metric] = f"{r.verdict}\n" + common.titled(r.effects).replace("; ", "\n")
    return common.page_table(pd.DataFrame(rows.values()))


def _verdicts(found: Metrics, way: str) -> tuple[pd.DataFrame, pd.Series]:
    """Claim and metric to verdict, where every metric gives one; which claims get the same."""
    table = _of(by_metric(found), way).pivot(index="claim", columns="metric", values="verdict")
    table = table[(table != NOT_TESTED).all(axis=1)]
    return table, table.nunique(axis=1) == 1


def verdicts_told(found: Metrics) -> Markdown:
    """Which verdicts depend on the metric."""
    return Markdown("\n\n".join(_verdicts_told(found, way) for way in WAYS))


def _verdicts_told(found: Metrics, way: str) -> str:
    table, same = _verdicts(found, way)
    if table.empty:
        return f"No claim can be judged by every metric on {way} circuits here."
    lines = []
    for claim, row in table[~same].iterrows():
        by = {v: ", ".join(m for m in METRICS if row[m] == v) for v in VERDICTS}
        told = "; ".join(f"**{v}** by {metrics}" for v, metrics in by.items() if metrics)
        lines.append(f"- {claim}: {told}.")
    number = f"{same.sum()} {'is' if same.sum() == 1 else 'are'}"
    said = f"Of {many(len(table), 'verdict')} on {way} circuits, {number} the same by every metric"
    said += f" ({', '.join(table.index[same])})." if same.any() else "."
    return "\n".join([said, "", *lines])

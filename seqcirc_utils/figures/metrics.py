"""Figures, tables and sentences of the chapter on the metric."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from seqcirc_utils.chapters.metrics import DIFFERENCE, KL, LEAD, LOG_PROB, OTHER, SAME, Metrics
from seqcirc_utils.components import Component
from seqcirc_utils.figures import common
from seqcirc_utils.figures.style import OKABE_ITO, closed, in_short
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.statistics import short

WORDS = {
    DIFFERENCE: "answer − last member",
    LOG_PROB: "log probability of the answer",
    LEAD: "answer − mean of the other members",
    KL: "closeness to the whole model (−KL)",
}
"""The metrics in words."""


def alike(found: Metrics) -> pd.DataFrame:
    """The overlap of two metrics' circuits as a share of that of halves, both beyond chance.

    Returns:
        A row per pair of metrics: ``first``, ``second``, and the ``share``, a mean over tasks.
    """
    table = found.overlap.set_index(["task", "first", "second"])["mean"] - found.chance
    rows = []
    for (task, first, second), value in table.items():
        if first != second:
            own = (table[task, first, first] + table[task, second, second]) / 2
            rows.append([first, second, value / own])
    frame = pd.DataFrame(rows, columns=["first", "second", "share"])
    return frame.groupby(["first", "second"], sort=False)["share"].mean().reset_index()


def _outcome(share: float) -> str:
    """What the rules call such an overlap."""
    return "the same" if share >= SAME else "another" if share < OTHER else "partly the same"


def only(found: Metrics) -> list[str]:
    """Heads that serve the logit difference only, by the rule, each with its task."""
    bounds = found.effects.pivot(index=["task", "component"], columns="metric", values="high")
    if not {DIFFERENCE, LOG_PROB, LEAD} <= set(bounds):
        return []
    rest = (bounds[LOG_PROB] >= 0) & (bounds[LEAD] >= 0)
    rows = bounds[(bounds[DIFFERENCE] < 0) & rest].index
    return [f"{c} ({TASKS[t].title.lower()})" for t, c in rows if not c.startswith("mlp")]


def _shared(found: Metrics, metric: str) -> int:
    rows = found.shared.set_index("metric")["shared"]
    return int(rows.get(metric, 0))


def _kept(found: Metrics) -> pd.Series:
    """What the logit difference's circuits keep by each judge, mean over tasks."""
    rows = found.judged[found.judged["circuit"] == DIFFERENCE]
    return rows.groupby("judge", sort=False)["mean"].mean()


def _self(found: Metrics) -> float:
    """Overlap of two halves of the prompts, by the logit difference, mean over tasks."""
    rows = found.overlap
    return rows.loc[(rows["first"] == DIFFERENCE) & (rows["second"] == DIFFERENCE), "mean"].mean()


def headline(found: Metrics) -> Markdown:
    """The chapter's answer, whichever way it comes out."""
    kept, pairs, said = _kept(found), alike(found), ""
    pairs = pairs[pairs["first"] == DIFFERENCE]
    if len(pairs):
        others = ", ".join(f"{kept[m]:.0%} by {m}" for m in pairs["second"] if m in kept)
        parts = ", ".join(
            f"{r.second} {_outcome(r.share)} ({r.share:.0%})" for r in pairs.itertuples()
        )
        said = (
            f"Circuits ranked by the logit difference keep {kept[DIFFERENCE]:.0%} of it, {others}, "
            f"and answer {kept['accuracy']:.0%} of the prompts correctly. As for which components: "
            f"halves of the prompts agree with Jaccard {_self(found):.2f}, and of that, beyond "
            f"chance, the logit difference and another metric reach: {parts}. "
        )
    return in_short(
        f"{said}Of the {_shared(found, DIFFERENCE)} components that all tasks share by the logit "
        f"difference, {len(found.stay)} are shared by every metric."
    )


def numbers(found: Metrics) -> dict[str, str]:
    """What the book's first page quotes."""
    pairs, kept = alike(found), _kept(found)
    shares = pairs.loc[pairs["first"] == DIFFERENCE, "share"]
    others = [kept[m] for m in (LOG_PROB, LEAD, KL) if m in kept and DIFFERENCE in kept]

    def span(values: list[float]) -> str:
        return f"{min(values):.0%} to {max(values):.0%}" if values else "none"

    told = {
        "alike": span(list(shares)),
        "kept": f"{kept[DIFFERENCE]:.0%}" if DIFFERENCE in kept else "none",
        "kept-others": span(others),
        "shared": str(_shared(found, DIFFERENCE)),
        "stay": str(len(found.stay)),
    }
    return {f"metrics-{name}": value for name, value in told.items()}


def left_out_told(found: Metrics) -> Markdown:
    """What is not compared, and why."""
    if not found.left_out:
        return Markdown("No task and no metric is left out.")
    lines = [f"- {name}: {why}" for name, why in found.left_out.items()]
    return Markdown("Left out:\n\n" + "\n".join(lines))


def judged_map(found: Metrics) -> Figure:
    """What each metric's circuit keeps by each metric, mean over tasks."""
    table = found.judged.pivot_table(
        index="circuit", columns="judge", values="mean", aggfunc="mean", sort=False
    )
    return common.table_heatmap(100 * table, "kept (%)", ".0f", limit=150)


def judged_table(found: Metrics) -> pd.DataFrame:
    """What each circuit keeps of each task by the metric that ranked it, and its accuracy."""
    rows = []
    for (task, circuit), part in found.judged.groupby(["task", "circuit"], sort=False):
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


def shared_table(found: Metrics) -> pd.DataFrame:
    """What all tasks share by each metric, beside chance."""
    rows = found.shared
    return pd.DataFrame(
        {
            "metric": rows["metric"],
            "shared": rows["shared"],
            "by chance": rows["expected"].map("{:.1f}".format),
            "p": rows["p"].map(short),
            "also shared by the logit difference": rows["kept"],
        }
    ).set_index("metric")


def effects_dots(found: Metrics) -> Figure:
    """What the ablation of single components changes in each metric."""
    tasks = list(dict.fromkeys(found.effects["task"]))
    names = sorted(set(found.effects["component"]), key=Component.parse, reverse=True)
    height = 0.26 * len(names) + 1.4
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(9, height), sharey=True, squeeze=False, layout="constrained"
    )
    metrics = list(dict.fromkeys(found.effects["metric"]))
    for axis, task in zip(axes[0], tasks, strict=True):
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
    axes[0][0].set_yticks(range(len(names)), names, fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(metrics), fontsize=8)
    return closed(figure)


def effects_told(found: Metrics) -> Markdown:
    """The heads that serve the logit difference only."""
    heads = only(found)
    tried = found.effects["component"][~found.effects["component"].str.startswith("mlp")].nunique()
    named = f" ({', '.join(heads)})" if heads else ""
    return Markdown(
        f"Of {tried} heads, **{len(heads)}** serve the logit difference only{named}: without them "
        "the last member comes closer to the answer, and neither the answer's probability nor its "
        "lead over the other members falls clearly."
    )


@common.needs("roles")
def roles_table(found: Metrics) -> pd.DataFrame:
    """How many components of each metric's circuit have each role, over the tasks."""
    table = found.roles.pivot_table(
        index="role", columns="metric", values="n", aggfunc="sum", fill_value=0, sort=False
    )
    return table.astype(int).rename_axis(columns=None)

"""Figures of the chapter on prediction and editing."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seqcirc_utils.figures.style import _OKABE_ITO, ANSWER, LAST, NEUTRAL, _close, task_colours
from seqcirc_utils.prompts.sequences import TASKS


def prediction_bars(table: pd.DataFrame) -> Figure:
    """Agreement of circuits with the whole model, a panel per task, beside random circuits.

    Args:
        table: Columns ``task``, ``measure`` (``member``, ``vocabulary``), ``subset``,
            ``agreement``, ``low``, ``high``, ``random_mean``, ``n``.
    """
    tasks, subsets = list(table["task"].unique()), ["all", "right", "wrong"]
    measures = {"member": "among members", "vocabulary": "among all tokens"}
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(9, 3.4), sharey=True, layout="constrained", squeeze=False
    )
    colours = dict(zip(measures, (_OKABE_ITO[0], _OKABE_ITO[5]), strict=True))
    for axis, task in zip(axes[0], tasks, strict=True):
        for i, measure in enumerate(measures):
            rows = table[(table["task"] == task) & (table["measure"] == measure)]
            rows = rows.set_index("subset").loc[subsets]
            x = np.arange(len(subsets)) + 0.4 * i - 0.2
            shown = rows["n"].to_numpy() > 0
            mean, rows = rows["agreement"].to_numpy()[shown], rows[shown]
            axis.bar(x[shown], mean, 0.36, color=colours[measure])
            spread = np.abs(rows[["low", "high"]].to_numpy().T - mean)
            axis.errorbar(x[shown], mean, spread, fmt="none", ecolor="black", lw=1, capsize=2)
            axis.scatter(x[shown], rows["random_mean"], marker="x", color=LAST, s=28, zorder=3)
        counts = table[(table["task"] == task) & (table["measure"] == "vocabulary")]
        counts = counts.set_index("subset")["n"]
        axis.set_xticks(range(len(subsets)), [f"{s}\n(n = {counts[s]})" for s in subsets])
        axis.set_title(TASKS[task].title if task in TASKS else task)
        axis.set(ylim=(0, 1.02))
    axes[0][0].set_ylabel("says what the model says (share)")
    figure.supxlabel("prompts, by whether the whole model's top token is the answer", fontsize=10)
    handles = [Patch(color=colours[m], label=f"circuit, {label}") for m, label in measures.items()]
    handles.append(plt.Line2D([], [], marker="x", ls="", color=LAST, label="random circuits, mean"))
    figure.legend(handles=handles, ncols=3, loc="outside upper center", frameon=False)
    return _close(figure)


def prediction_scatter(points: pd.DataFrame) -> Figure:
    """Logit differences of the circuit against the whole model's, a panel per task.

    Args:
        points: Columns ``task``, ``whole``, ``circuit`` (logits), ``right`` (of the whole model).
    """
    tasks = list(points["task"].unique())
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(9, 3.4), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        rows = points[points["task"] == task]
        ends = [rows[["whole", "circuit"]].min().min(), rows[["whole", "circuit"]].max().max()]
        axis.plot(ends, ends, color=NEUTRAL, lw=0.8, ls="--", label="equal")
        for right, colour, marker in ((True, ANSWER, "o"), (False, LAST, "^")):
            part = rows[rows["right"] == right]
            label = f"the model is {'right' if right else 'wrong'}"
            axis.scatter(
                part["whole"], part["circuit"], s=18, color=colour, marker=marker, alpha=0.7,
                lw=0, label=label,
            )  # fmt: skip
        axis.set_title(TASKS[task].title if task in TASKS else task)
        axis.set_xlabel("whole model (logits)")
    axes[0][0].set_ylabel("circuit alone (logits)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc="outside upper center", frameon=False)
    return _close(figure)


def edit_responses(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """What scaling one component does to every task: a row per part, a column per edited task.

    Args:
        table: Columns ``part``, ``component``, ``factor``, ``edited_task``, ``target``,
            ``score_before``, ``change``, ``low``, ``high``.
        titles: Target to its label; targets without one are left out.
    """
    parts = list(table["part"].unique())
    tasks = [t for t in titles if t in set(table["edited_task"])]
    colours = task_colours([t for t in titles if t in TASKS])
    others = iter(((NEUTRAL, "--"), (NEUTRAL, ":"), ("#000000", "-.")))
    looks = {t: (colours[t], "-") if t in colours else next(others) for t in titles}
    figure, axes = plt.subplots(
        len(parts), len(tasks), figsize=(9, 2.2 * len(parts) + 0.9), sharex=True, sharey="row",
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for row, part in zip(axes, parts, strict=True):
        for axis, task in zip(row, tasks, strict=True):
            edits = table[(table["part"] == part) & (table["edited_task"] == task)]
            axis.axhline(100, color="#cccccc", lw=0.8, zorder=0)
            axis.axhline(0, color="#cccccc", lw=0.8, zorder=0)
            if edits.empty:
                axis.set_title("none")
                continue
            for target, title in titles.items():
                one = edits[edits["target"] == target].sort_values("factor")
                if one.empty:
                    continue
                share = one[["change", "low", "high"]].div(one["score_before"], axis=0) * 100 + 100
                share["factor"] = one["factor"]
                share.loc[-1] = {"change": 100, "low": 100, "high": 100, "factor": 1}
                share = share.sort_values("factor")
                colour, style = looks[target]
                wide = 2.4 if target == task else 1.2
                axis.fill_between(
                    share["factor"], share["low"], share["high"], color=colour, alpha=0.12, lw=0
                )
                axis.plot(
                    share["factor"], share["change"], style, marker="o", ms=3, lw=wide,
                    color=colour, label=title,
                )  # fmt: skip
            name = edits["component"].iloc[0]
            axis.set_title(f"{titles[task]}: {part} {name.removeprefix('mlp')}", fontsize=9)
            axis.set_xticks([0, *sorted({1.0, *edits["factor"]} - {0})])
            axis.xaxis.set_major_formatter("{x:g}")
        row[0].set_ylabel("% of unedited")
    figure.supxlabel("factor on what the component writes (0 removes it, 1 leaves it)", fontsize=10)
    handles = [
        plt.Line2D([], [], color=looks[t][0], ls=looks[t][1], label=title)
        for t, title in titles.items()
    ]
    figure.legend(handles=handles, ncols=len(titles), loc="outside upper center", frameon=False)
    return _close(figure)


def selectivity_scatter(table: pd.DataFrame) -> Figure:
    """Cost of ablating a circuit's head: to its own task, and to the others.

    Args:
        table: Columns ``component``, ``group`` (``shared head``, ``own head``, ``some``), ``own``
            and ``others`` (shares of the logit difference).
    """
    looks = {
        "shared head": (ANSWER, "o", "in every circuit"),
        "some": (NEUTRAL, "s", "in some circuits"),
        "own head": (LAST, "^", "in this circuit only"),
    }
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    ends = [0, 100 * max(table["own"].max(), table["others"].max())]
    axis.plot(ends, ends, color=NEUTRAL, lw=0.8, ls="--", label="as much to the others")
    axis.axhline(0, color="#cccccc", lw=0.8)
    for name, (colour, marker, label) in looks.items():
        rows = table[table["group"] == name]
        axis.scatter(
            100 * rows["own"], 100 * rows["others"], s=24, color=colour, marker=marker, alpha=0.75,
            lw=0, label=label,
        )  # fmt: skip
    for _, row in table.nlargest(4, "own").drop_duplicates("component").head(2).iterrows():
        axis.annotate(
            f"{row['component']} ({TASKS[row['task']].title.lower()})",
            (100 * row["own"], 100 * row["others"]),
            xytext=(-6, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    axis.set(
        xlabel="cost to the circuit's task (% of its logit difference)",
        ylabel="mean cost to the other tasks (%)",
    )
    axis.legend(loc="upper left")
    return _close(figure)

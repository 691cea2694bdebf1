"""How the findings on prediction and editing look."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seqcirc_utils.chapters.cross_task import TITLES
from seqcirc_utils.chapters.prediction_and_editing import PredictionAndEditing
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.edits import LEVEL
from seqcirc_utils.figures.style import (
    ANSWER,
    LAST,
    NEUTRAL,
    closed,
    in_short,
)
from seqcirc_utils.statistics import short


def tasks_told(found: PredictionAndEditing) -> Markdown:
    """Which tasks are left out, and why."""
    lines = [f"- **{title} is left out:** {why}" for title, why in found.skipped.items()]
    able = ", ".join(TITLES[task].lower() for task in found.circuit_sizes)
    return Markdown(
        "\n".join(lines) or f"{found.model} does all tasks asked for ({able}); none is left out."
    )


@common.needs("prediction")
@forms.two_forms
def prediction_bars(found: PredictionAndEditing) -> Figure:
    """Agreement of circuits with the whole model, a panel per task, beside random circuits."""
    table = found.prediction
    tasks, subsets = list(table["task"].unique()), ["all", "right", "wrong"]
    measures = {"member": "among members", "vocabulary": "among all tokens"}
    phone = 2.1 * len(tasks) + 1.3
    figure, axes = forms.subplots(1, len(tasks), size=(9, 3.4), phone=phone, sharey=True)
    colours = {"member": ANSWER, "vocabulary": "#56B4E9"}
    for axis, task in zip(axes, tasks, strict=True):
        for i, measure in enumerate(measures):
            rows = table[(table["task"] == task) & (table["measure"] == measure)]
            rows = rows.set_index("subset").loc[subsets]
            x = np.arange(len(subsets)) + 0.4 * i - 0.2
            shown = rows["n"].to_numpy() > 0
            x, rows = x[shown], rows[shown]
            axis.bar(x, rows["agreement"], 0.36, color=colours[measure])
            spread = common.spread(rows, "agreement")
            axis.errorbar(x, rows["agreement"], spread, fmt="none", ecolor="black", lw=1, capsize=2)
            axis.scatter(x, rows["random_mean"], marker="x", color=LAST, s=28, zorder=3)
        counts = table[(table["task"] == task) & (table["measure"] == "vocabulary")]
        counts = counts.set_index("subset")["n"]
        axis.set_xticks(range(len(subsets)), [f"{s}\n(n = {counts[s]})" for s in subsets])
        axis.set_title(TITLES[task])
        axis.set(ylim=(0, 1.02))
    axes[len(axes) // 2 if forms.for_phone() else 0].set_ylabel("says what the model says (share)")
    label = forms.wrapped("prompts, by whether the whole model's top token is the answer")
    figure.supxlabel(label, fontsize=10)
    handles = [Patch(color=colours[m], label=f"circuit, {label}") for m, label in measures.items()]
    handles.append(plt.Line2D([], [], marker="x", ls="", color=LAST, label="random circuits, mean"))
    ncols = forms.either(3, 1)
    figure.legend(handles=handles, ncols=ncols, loc="outside upper center", frameon=False)
    return closed(figure)


@common.needs("prediction")
@forms.two_forms
def prediction_scatter(found: PredictionAndEditing) -> Figure:
    """Logit differences of the circuit against the whole model's, a panel per task."""
    points = found.points
    tasks = list(points["task"].unique())
    figure, axes = forms.subplots(1, len(tasks), size=(9, 3.4), phone=2.8 * len(tasks) + 0.4)
    for axis, task in zip(axes, tasks, strict=True):
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
        axis.set_title(TITLES[task])
        axis.set_xlabel("whole model (logits)")
    for axis in axes[: forms.either(1, len(axes))]:
        axis.set_ylabel("circuit alone (logits)")
    handles, labels = axes[0].get_legend_handles_labels()
    ncols = forms.either(3, 2)
    figure.legend(handles, labels, ncols=ncols, loc="outside upper center", frameon=False)
    return closed(figure)


@common.needs("prediction")
def prediction_table(found: PredictionAndEditing) -> HTML:
    """How often each circuit says what the model says, and how alike they are otherwise."""
    columns = {}
    for task, part in found.prediction.groupby("task", sort=False):
        by = {(r.measure, r.subset): r for r in part.itertuples()}
        columns[TITLES[task]] = {
            "The same token as the model": _share(by["vocabulary", "all"]),
            "The same token where the model is right": _share(by["vocabulary", "right"]),
            "The same token where it is wrong": _share(by["vocabulary", "wrong"]),
            "Correlation of logit differences": _correlation(by["logit_diff", "all"]),
            "Correlation (phi) of which prompts go wrong": _correlation(by["errors", "all"]),
        }
    return common.page_table(pd.DataFrame(columns).rename_axis("measure").reset_index())


@common.needs("prediction")
def prediction_told(found: PredictionAndEditing) -> Markdown:
    """Whether any circuit foretells the model's errors."""
    lines = [f"- Left out: {name}: {reason}" for name, reason in found.left_out.items()]
    wrong = found.prediction[found.prediction["subset"] == "wrong"]
    wrong = wrong[(wrong["measure"] == "vocabulary") & (wrong["n"] > 0)]
    better = wrong[(wrong["p"] <= LEVEL) & (wrong["agreement"] > wrong["random_mean"])]
    named = ", ".join(TITLES[task].lower() for task in better["task"])
    verdict = (
        "Rule: a circuit predicts the model's errors if it repeats them more often than at least "
        f"95% of its random circuits. That holds for **{len(better)} of {len(wrong)}** tasks with "
        f"errors{f' ({named})' if named else ''}."
    )
    smallest = 1 / (found.n_random + 1)
    if smallest > LEVEL:
        verdict += (
            f" With {found.n_random} random circuits p cannot fall below {short(smallest)}: too "
            "few to tell."
        )
    return Markdown("\n".join([*lines, "", verdict]))


def _share(row) -> str:
    """An agreement as a share of prompts, beside random circuits."""
    if not row.n:
        return "no such prompt"
    return (
        f"{row.agreement:.0%} ({row.low:.0%} to {row.high:.0%}; n = {row.n})\n"
        f"random {row.random_mean:.0%}, p = {short(row.p)}"
    )


def _correlation(row) -> str:
    """An agreement as a correlation, beside random circuits."""
    if np.isnan(row.agreement):
        return "undefined (no variation)"
    return (
        f"{row.agreement:.2f} ({row.low:.2f} to {row.high:.2f})\n"
        f"random {row.random_mean:.2f}, p = {short(row.p)}"
    )


@common.needs("prediction")
def error_table(found: PredictionAndEditing) -> pd.DataFrame | Markdown:
    """The errors that were looked into, and the component that turned each."""
    if found.errors.empty:
        return Markdown("The model makes no error on the pool.")
    shown = found.errors.assign(
        task=found.errors["task"].map(TITLES),
        prompt=["…" + text[-34:] for text in found.errors["prompt"]],
        margin=found.errors["margin"].map("{:.2f}".format),
        effect=found.errors["effect"].map("{:.2f}".format),
    )
    shown[["mended", "in_circuit"]] = shown[["mended", "in_circuit"]].replace(
        {True: "yes", False: "no"}
    )
    names = {"circuit_said": "circuit said", "in_circuit": "in circuit", "n_mending": "mending"}
    return shown.rename(columns=names).set_index("task")


@common.needs("prediction")
def errors_told(found: PredictionAndEditing) -> Markdown:
    """How many errors the circuit repeats, and what turns them."""
    lines = []
    for task, part in found.errors.groupby("task", sort=False):
        most = part["component"].value_counts().head(3)
        listed = ", ".join(f"{name} ({n}×)" for name, n in most.items())
        expected = len(part) * found.circuit_sizes[task] / found.n_components
        lines.append(
            f"- **{TITLES[task]}**: errors looked into: {len(part)}. The circuit makes the same "
            f"one in {(part['circuit_said'] == part['said']).sum()} and gives the right answer in "
            f"{(part['circuit_said'] == part['answer']).sum()}; ablating one component mends "
            f"{part['mended'].sum()}. Most often turned by {listed}; the turning component is in "
            f"the circuit in {part['in_circuit'].sum()} of {len(part)} ({expected:.1f} expected of "
            "any component)."
        )
    return Markdown("\n".join(lines) or "No errors.")


def headline(found: PredictionAndEditing) -> Markdown:
    """The chapter's finding in a sentence or two."""
    rows = found.prediction
    rows = rows[(rows["measure"] == "vocabulary") & (rows["n"] > 0)]
    means = rows.groupby("subset")[["agreement", "random_mean"]].mean()
    told = [
        f"{means.loc[subset, 'agreement']:.0%} of the prompts that the model gets {subset} (random "
        f"circuits {means.loc[subset, 'random_mean']:.0%})"
        for subset in ("right", "wrong")
        if subset in means.index
    ]
    if not told:
        return in_short("No circuit could be held against what the model says.")
    return in_short(f"By itself a circuit says what the model says in {' and '.join(told)}.")

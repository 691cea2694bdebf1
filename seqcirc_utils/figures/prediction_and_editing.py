"""How the findings on prediction and editing look."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seqcirc_utils.chapters.cross_task import TITLES
from seqcirc_utils.chapters.prediction_and_editing import PredictionAndEditing
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import (
    ANSWER,
    LAST,
    NEUTRAL,
    closed,
    in_short,
    many,
    task_colours,
)
from seqcirc_utils.prompts import controls
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.statistics import short

NOTHING = "–"
"""In place of a number that there is not."""
LEVEL = 0.05
"""A p-value up to this is remarkable."""


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


@common.needs("edits")
@forms.two_forms
def edit_responses(found: PredictionAndEditing) -> Figure:
    """What scaling one component does to every task: a row per part, a column per edited task."""
    table = found.edits
    titles = {t: TITLES[t] for t in table["target"].unique() if t != "text"}
    parts = list(table["part"].unique())
    tasks = [t for t in titles if t in set(table["edited_task"])]
    colours = task_colours([t for t in titles if t in TASKS])
    others = iter(((NEUTRAL, "--"), (NEUTRAL, ":"), ("#000000", "-.")))
    looks = {t: (colours[t], "-") if t in colours else next(others) for t in titles}
    there = set(zip(table["part"], table["edited_task"], strict=True))
    shown = [(p, t) for p in parts for t in tasks if (p, t) in there or not forms.for_phone()]
    size, phone = (9, 2.2 * len(parts) + 0.9), 1.4 * len(shown) + 1.2
    figure, axes = forms.subplots(
        *forms.either((len(parts), len(tasks)), (len(shown), 1)),
        size=size, phone=phone, sharex=True, sharey=forms.either("row", "none"),
    )  # fmt: skip
    for axis, (part, task) in zip(axes, shown, strict=True):
        axis.axhline(100, color="#cccccc", lw=0.8, zorder=0)
        axis.axhline(0, color="#cccccc", lw=0.8, zorder=0)
        if (part, task) in there:
            edits = table[(table["part"] == part) & (table["edited_task"] == task)]
            _responses(axis, edits, titles, looks)
            name = edits["component"].iloc[0].removeprefix("mlp")
            axis.set_title(f"{titles[task]}: {part} {name}", fontsize=9)
        else:
            axis.set_title(f"{titles[task]}: no {part}", fontsize=9)
    for axis in axes[:: forms.either(len(tasks), 3)]:
        axis.set_ylabel("% of unedited")
    label = forms.wrapped("factor on what the component writes (0 removes it, 1 leaves it)")
    figure.supxlabel(label, fontsize=10)
    handles = [
        plt.Line2D([], [], color=looks[t][0], ls=looks[t][1], label=title)
        for t, title in titles.items()
    ]
    ncols = forms.either(len(titles), 2)
    figure.legend(handles=handles, ncols=ncols, loc="outside upper center", frameon=False)
    return closed(figure)


def _responses(
    axis: Axes, edits: pd.DataFrame, titles: dict[str, str], looks: dict[str, tuple[str, str]]
) -> None:
    """What scaling one component does: a line per target, bold the one that is meant."""
    for target, title in titles.items():
        one = edits[edits["target"] == target].sort_values("factor")
        if one.empty:
            continue
        share = one[["change", "low", "high"]].div(one["score_before"], axis=0) * 100 + 100
        share["factor"] = one["factor"]
        share.loc[-1] = {"change": 100, "low": 100, "high": 100, "factor": 1}
        share = share.sort_values("factor")
        colour, style = looks[target]
        wide = 2.4 if target == edits["edited_task"].iloc[0] else 1.2
        axis.fill_between(
            share["factor"], share["low"], share["high"], color=colour, alpha=0.12, lw=0
        )
        axis.plot(
            share["factor"], share["change"], style, marker="o", ms=3, lw=wide,
            color=colour, label=title,
        )  # fmt: skip
    axis.set_xticks([0, *sorted({1.0, *edits["factor"]} - {0})])
    axis.xaxis.set_major_formatter("{x:g}")


def _relative(edits: pd.DataFrame) -> pd.Series:
    """Changes in percent of the unedited score; a higher loss on text is negative: damage."""
    sign = 1 - 2 * (edits["target"] == "text")
    return 100 * sign * edits["change"] / edits["score_before"]


@common.needs("edits")
def damage_map(found: PredictionAndEditing) -> Figure:
    """What the strongest edit of each component does to every target."""
    edits = found.edits[found.edits["factor"] == found.edits["factor"].min()]
    labels = {}
    for component, rows in edits.groupby("component", sort=False):
        tasks = list(rows["edited_task"].unique())
        named = ", ".join(TITLES[task].lower() for task in tasks)
        whose = named if len(tasks) < len(found.circuit_sizes) else "all"
        labels[component] = f"{component} ({rows['part'].iloc[0]}: {whose})"
    once = edits.assign(value=_relative(edits)).drop_duplicates(["component", "target"])
    grid = once.pivot(index="component", columns="target", values="value")
    grid = grid.loc[list(labels), list(edits["target"].unique())]
    grid = grid.rename(index=labels, columns=TITLES | {"text": "Text (loss)"})
    grid.index.name, grid.columns.name = "edited component", "target"
    return common.table_heatmap(grid, "% of unedited (negative: worse)", ".0f", limit=100)


@common.needs("edits")
def edit_table(found: PredictionAndEditing) -> HTML:
    """What the strongest edits do to the task they are meant for and to everything else."""
    strongest = found.edits[found.edits["factor"] == found.edits["factor"].min()]
    rows = [
        {"edited": str(part)} | _damage(found, of_part)
        for part, of_part in strongest.groupby("part", sort=False)
    ]
    return common.page_table(pd.DataFrame(rows))


@common.needs("edits")
def edits_told(found: PredictionAndEditing) -> Markdown:
    """What boosting does, and what no edit can be held against."""
    edits, factors, lines = found.edits, found.edits["factor"], []
    boosts = edits[(factors == factors.max()) & (edits["target"] == edits["edited_task"])]
    if factors.max() > 1 and len(boosts):
        helped = (boosts["low"] > 0).sum()
        lines.append(
            f"- **Boosting** by {factors.max():g} raises the intended task's logit difference, "
            f"with its whole interval, in {helped} of {len(boosts)} edits: turning a component up "
            f"is {'' if helped > len(boosts) / 2 else 'not '}mostly the reverse of turning it "
            f"down. {_accuracy_told(boosts)}"
        )
    lines += [f"- Not a target: {name}: {reason}" for name, reason in found.not_targets.items()]
    return Markdown("\n".join(lines))


def _accuracy_told(boosts: pd.DataFrame) -> str:
    """In how many of the edits that leave room for it accuracy rises."""
    room = boosts[boosts["accuracy_before"] < 1]
    if room.empty:
        return "Accuracy cannot rise: it is 100% before."
    rose = (room["accuracy_after"] > room["accuracy_before"]).sum()
    return f"Accuracy rises in {rose} of the {len(room)} where it is below 100% before."


def _damage(found: PredictionAndEditing, rows: pd.DataFrame) -> dict[str, str]:
    """What one edit of one part does, as intended and besides (means over the edited tasks)."""
    rows = rows.assign(value=_relative(rows))
    target, intended = rows["target"], rows["target"] == rows["edited_task"]
    aimed = "\n".join(
        f"{TITLES[r.edited_task].lower()} {r.component}: {r.value:+.0f}% (p = {short(r.p)})"
        for r in rows[intended].itertuples()
    )
    others = rows[target.isin(found.circuit_sizes) & ~intended]["value"]
    control = rows[target.isin(controls.TITLES)]["value"]
    text, told = rows[target == "text"], NOTHING
    if len(text):
        told = (
            f"{text['change'].mean():+.2f} nats per token ({many(text['n'].max(), 'piece')})\n"
            f"matched random edits {text['random_mean'].mean():+.2f}"
        )
    return {
        "the task meant": aimed,
        "other tasks (mean)": f"{others.mean():+.0f}%" if len(others) else NOTHING,
        "control tasks (mean)": f"{control.mean():+.0f}%" if len(control) else NOTHING,
        "text": told,
    }


@common.needs("selectivity")
@forms.two_forms
def selectivity_scatter(found: PredictionAndEditing) -> Figure:
    """Cost of ablating a circuit's head: to its own task, and to the others."""
    table = found.selectivity
    looks = {
        "shared head": (ANSWER, "o", "in every circuit"),
        "some": (NEUTRAL, "s", "in some circuits"),
        "own head": (LAST, "^", "in this circuit only"),
    }
    figure, (axis,) = forms.subplots(size=(7, 4.4), phone=3.6)
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
            f"{row['component']} ({TITLES[row['task']].lower()})",
            (100 * row["own"], 100 * row["others"]),
            xytext=(-6, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    axis.set(
        xlabel=forms.wrapped("cost to the circuit's task (% of its logit difference)"),
        ylabel="mean cost to the other tasks (%)",
    )
    if forms.for_phone():
        figure.legend(ncols=2, loc="outside upper center")
    else:
        axis.legend(loc="upper left")
    return closed(figure)


def selectivity_told(found: PredictionAndEditing) -> Markdown:
    """Whether edits of shared or of own heads cost the other tasks more."""
    shared, own, p = (found.collateral[name] for name in ("shared", "own", "p"))
    if shared is None or own is None or p is None:
        return Markdown(
            "Shared and own heads cannot be compared: both groups need heads of clear effect."
        )
    heads = found.selectivity.groupby("group")["component"].nunique()
    if p > LEVEL:
        verdict = "The difference may be chance: sharing does not tell which edit is safe."
    elif own < shared:
        verdict = "Edits of a task's own heads are safer for the other tasks."
    else:
        verdict = "Edits of the shared heads are, against expectation, the safer ones."
    return Markdown(
        f"Median collateral: **{shared:.2f}** for what every circuit holds "
        f"({many(heads['shared head'], 'head')}), **{own:.2f}** for what only one holds "
        f"({many(heads['own head'], 'head')}). "
        f"By Mann and Whitney's test p = {short(p)}, with each head counted once. {verdict}"
    )


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

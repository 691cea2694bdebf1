"""How the findings on edits look: what scaling a component does, as meant and besides."""

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from seqcirc_utils.chapters.circuit_tasks import TITLES
from seqcirc_utils.chapters.prediction_and_editing import PredictionAndEditing
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import ANSWER, LAST, NEUTRAL, closed, many, task_colours
from seqcirc_utils.prompts import controls
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.statistics import short

NOTHING = "–"
"""In place of a number that there is not."""
LEVEL = 0.05
"""A p-value up to this is remarkable."""


@common.needs("edits")
@forms.two_forms
def responses(found: PredictionAndEditing) -> Figure:
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
            _lines(axis, edits, titles, looks)
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


def _lines(
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
def damage_table(found: PredictionAndEditing) -> HTML:
    """What the strongest edits do to the task they are meant for and to everything else."""
    strongest = found.edits[found.edits["factor"] == found.edits["factor"].min()]
    rows = [
        {"edited": str(part)} | _damage(found, of_part)
        for part, of_part in strongest.groupby("part", sort=False)
    ]
    return common.page_table(pd.DataFrame(rows))


@common.needs("edits")
def boosts_told(found: PredictionAndEditing) -> Markdown:
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

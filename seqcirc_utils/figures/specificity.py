"""Figures, tables and sentences of the chapter on specificity."""

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from seqcirc_utils.analyses.specificity import PARTS, SURE
from seqcirc_utils.chapters.ranked_tasks import KINDS, OUTSIDE, REPEAT, SEQUENCES, TITLES
from seqcirc_utils.chapters.specificity import Specificity
from seqcirc_utils.components import Component, by_kind
from seqcirc_utils.figures import common, doses, forms
from seqcirc_utils.figures.doses import AGAINST, bounds
from seqcirc_utils.figures.style import ANSWER, LAST, NEUTRAL, bounded, closed, in_short

ALIKE = {
    "halves": "one task, other prompts",
    "sentences": "one task, another sentence",
    "sequences": "two sequences",
    "another sentence": "two sequences, another sentence",
    "repeat": "a sequence and repeating",
    "shuffled": "a sequence and its shuffled order",
    "outside": "a sequence and an outside task",
    "halves, shuffled weights": "shuffled weights: one task",
    "shuffled weights": "shuffled weights: two sequences",
}
"""Kinds of pairs of circuits, in words."""


def _row(found: Specificity, measure: str, against: str, kind: str = "circuit") -> pd.Series | None:
    """The index of the sequence tasks' sets together."""
    rows = found.index
    rows = rows[(rows["measure"] == measure) & (rows["kind"] == kind)]
    rows = rows[(rows["set"] == SEQUENCES) & (rows["against"] == against)]
    return None if rows.empty else rows.iloc[0]


def _count(found: Specificity, part: str) -> int:
    return int((found.parts["part"] == part).sum())


def headline(found: Specificity) -> Markdown:
    """The chapter's answer, whichever way it comes out."""
    parts = ""
    if len(found.parts):
        general, template, sequence = (_count(found, part) for part in PARTS)
        parts = (
            f"Of the {len(found.parts)} components that the sequence circuits share, {general} are "
            f"also in the circuits of most outside tasks, {template} of the others in that of "
            f"repeating a word in the same sentences, and {sequence} in neither. "
        )
    lost = f"*Lost without a sequence's {found.n_ablated} strongest components*"
    points = [
        f"{lost}: {_compared(found, 'damage')}{_beside(found)}.",
        *doses.short(found),
        f"*Kept by a sequence's circuit alone*: {_compared(found, 'kept')}.",
    ]
    return in_short(f"{parts}Own task minus others, with 95% intervals:", points)


def _compared(found: Specificity, measure: str) -> str:
    """Own minus others of the sequences' circuits, by what it says and of which others."""
    rows = {against: _row(found, measure, against) for against in KINDS}
    return doses.grouped(
        [
            (doses.sign(row, *CLEARLY), f"{AGAINST[against]} ({bounds(row)})")
            for against, row in rows.items()
            if row is not None
        ]
    )


CLEARLY = "more than of", "less than of", "no clear difference from"
"""What own minus others may say."""


def _beside(found: Specificity) -> str:
    random = _row(found, "damage", OUTSIDE, "random")
    words = "; random heads of the same layers and the same MLPs, against outside tasks:"
    return "" if random is None else f"{words} {bounds(random)}"


def numbers(found: Specificity) -> dict[str, str]:
    """What the book's first page quotes."""
    told = {f"shared-{part}": str(_count(found, part)) for part in PARTS}
    told["shared"] = str(len(found.parts))
    for against in KINDS:
        row = _row(found, "damage", against)
        told[f"damage-{against}"] = "none" if row is None else bounds(row)
        row = _row(found, "kept", against)
        told[f"kept-{against}"] = "none" if row is None else bounds(row)
    told |= doses.numbers(found)
    return {f"specificity-{name}": value for name, value in told.items()}


def tasks_table(found: Specificity) -> pd.DataFrame:
    """How well the model does each task, on the prompts that judge."""
    rows = found.tasks
    values = rows[["mean", "low", "high"]].itertuples(index=False)
    table = {
        "task": rows["task"].map(TITLES),
        "kind": rows["kind"].map({SEQUENCES: "sequence", REPEAT: "same sentences"}),
        "logit difference": [f"{m:z.2f} [{low:z.2f}, {high:z.2f}]" for m, low, high in values],
        "right answer preferred": [f"{v:.0%}" for v in rows["preferred"]],
        "on top of all tokens": [f"{v:.0%}" for v in rows["accuracy"]],
    }
    return pd.DataFrame(table).fillna({"kind": "outside"}).set_index("task")


def left_out_told(found: Specificity) -> Markdown:
    """What is not compared, and why."""
    if not found.left_out:
        return Markdown("The model prefers the right answer in all tasks: none is left out.")
    lines = [f"- {name}: {why}" for name, why in found.left_out.items()]
    return Markdown("Left out:\n\n" + "\n".join(lines))


@forms.two_forms
def matrices(found: Specificity) -> Figure:
    """Each circuit's loss, and each circuit alone, on each task."""
    panels = {
        f"damage without the {found.n_ablated} strongest": found.damage,
        f"left with only the {found.n_kept} strongest": found.kept,
    }
    figure, axes = forms.subplots(1, 2, size=(9, 4.3), phone=8.6, sharey=True)
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        order = list(found.tasks["task"])
        grid = 100 * rows[rows["kind"] == "circuit"].pivot(
            index="set", columns="task", values="mean"
        )
        grid = grid.loc[order, order].rename(index=TITLES, columns=TITLES)
        texts = grid.map(lambda v: f"{v:z.0f}")
        common.heatmap(axis, grid, texts, 150, label="% of the logit difference", extend="both")
        first = axis is axes[0] or forms.for_phone()
        axis.set(title=title, xlabel="task", ylabel="circuit of" if first else "")
        axis.tick_params(axis="x", rotation=forms.either(40, 60))
    return closed(figure)


@forms.two_forms
def index_dots(found: Specificity) -> Figure:
    """Own minus others' damage, and the same of what is kept, by circuit and kind of others."""
    figure, axes = forms.subplots(1, 3, size=(11, 3.6), phone=7.6, sharey=True)
    order = [*found.tasks["task"], SEQUENCES]
    looks = {
        ("damage", "circuit"): (ANSWER, "damage", -0.2),
        ("kept", "circuit"): (LAST, "kept", 0.0),
        ("damage", "random"): (NEUTRAL, "damage, random heads beside the same MLPs", 0.2),
    }
    for axis, against in zip(axes, KINDS, strict=True):
        for (measure, kind), (colour, words, shift) in looks.items():
            rows = found.index[found.index["against"] == against]
            rows = rows[(rows["measure"] == measure) & (rows["kind"] == kind)]
            places = [order.index(name) + shift for name in rows["set"]]
            values = rows[["mean", "low", "high"]] * 100
            spread = common.spread(values, "mean")
            axis.errorbar(values["mean"], places, xerr=spread, fmt="none", ecolor=colour, lw=1.2)
            axis.plot(values["mean"], places, "o", color=colour, ms=4, label=words)
        axis.axvline(0, color="black", lw=0.8)
        axis.set(title=f"against {AGAINST[against]}", xlabel="own minus others (points)")
    axes[0].set_yticks(range(len(order)), [*(TITLES[t] for t in order[:-1]), "mean of sequences"])
    axes[0].invert_yaxis()
    ncols = forms.either(3, 1)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=ncols, loc="outside upper center")
    return closed(figure)


def index_told(found: Specificity) -> Markdown:
    """What the indices of the sequence circuits say, beside random sets."""
    lines = []
    for against in KINDS:
        row, kept = (_row(found, measure, against) for measure in ("damage", "kept"))
        if row is None or kept is None:
            continue
        random = _row(found, "damage", against, "random")
        beside = "" if random is None else f" (random heads, the same MLPs: {bounds(random)})"
        lines.append(
            f"- against {AGAINST[against]}: damage {bounds(row)}{beside}; kept {bounds(kept)}"
        )
    kinds = found.tasks.set_index("task")["kind"]
    cells = found.damage[found.damage["kind"] == "circuit"]
    cells = cells[cells["set"].map(kinds) == SEQUENCES]
    own = cells["set"] == cells["task"]
    levels = [f"{100 * cells.loc[own, 'mean'].mean():.0f}% on the own task"]
    for against in KINDS:
        rows = cells[~own & (cells["task"].map(kinds) == against)]
        if len(rows):
            levels.append(f"{100 * rows['mean'].mean():.0f}% on {AGAINST[against]}")
    return Markdown(
        "Own task minus others, mean over the sequence circuits; above zero is specific:\n\n"
        + "\n".join(lines)
        + f"\n\nThe damage itself: {', '.join(levels)}. Where all is near 100%, damage cannot "
        "tell tasks apart, and what is kept has to."
    )


@common.needs("parts")
@forms.two_forms
def parts_bars(found: Specificity) -> Figure | Markdown:
    """What each part of the shared components is worth to each kind of task."""
    if found.parts.empty:
        return Markdown("Not here: the circuits share no component.")
    sets = [(part, kind) for part in ("shared", *PARTS) for kind in ("part", "random")]
    worth = found.part_damage.set_index(["set", "kind"])
    sets = [one for one in sets if one in worth.index]
    size = 7.5, 0.45 * len(sets) + 1.4
    figure, (axis,) = forms.subplots(size=size, phone=size[1])
    colours = {SEQUENCES: ANSWER, REPEAT: LAST, OUTSIDE: NEUTRAL}
    for i, to in enumerate(KINDS):
        rows = 100 * worth.loc[worth["to"] == to, ["mean", "low", "high"]]
        places = [sets.index(one) + 0.25 * (i - 1) for one in rows.index]
        axis.barh(places, rows["mean"], 0.25, color=colours[to], label=to)
        spread = common.spread(rows, "mean")
        axis.errorbar(rows["mean"], places, xerr=spread, fmt="none", ecolor="black", lw=0.8)
    names = {"part": "", "random": ": random heads, its MLPs"}
    labels = [forms.wrapped(f"{part}{names[kind]}", 18) for part, kind in sets]
    axis.set_yticks(range(len(sets)), labels)
    axis.invert_yaxis()
    axis.axvline(0, color="black", lw=0.8)
    axis.set_xlabel(forms.wrapped("damage without it (% of the logit difference)", 30))
    axis.legend(fontsize=8)
    return closed(figure)


@common.needs("parts")
def parts_told(found: Specificity) -> Markdown:
    """Which shared components are whose, how many chance gives, and what each part is worth."""
    if found.parts.empty:
        return Markdown("The circuits share no component.")
    words = {
        "general": "in the circuits of most outside tasks too",
        "template": "else in that of repeating",
        "sequence": "in neither",
    }
    worth, lines = found.part_damage[found.part_damage["kind"] == "part"], []
    for part in PARTS:
        names = found.parts.loc[found.parts["part"] == part, "component"]
        held = {k: sorted(v) for k, v in by_kind(map(Component.parse, names)).items()}
        listed = ", ".join(str(c) for some in held.values() for c in some)
        line = f"- {part} ({words[part]}): {len(names)}, by chance {found.expected[part]:.1f}"
        if len(names):
            rows = worth[worth["set"] == part].set_index("to")[["mean", "low", "high"]]
            damage = ", ".join(f"{to} {bounded(row)}" for to, row in rows.iterrows())
            line += f"; {listed}. Damage without it: {damage}"
        lines.append(line)
    return Markdown(
        f"The sequence circuits, {found.n_kept} of {found.n_components} components each, share "
        f"{len(found.parts)}:\n\n" + "\n".join(lines)
    )


def _overlap_means(found: Specificity) -> pd.DataFrame:
    """Mean over pairs of each kind: overlap and its range, in the order of the words."""
    means = found.overlap.groupby("kind")[["mean", "low", "high"]].mean()
    return means.reindex([kind for kind in ALIKE if kind in means.index])


@forms.two_forms
def overlap_dots(found: Specificity) -> Figure:
    """Overlap of circuits by what the two have in common."""
    means = _overlap_means(found)
    size = 7.5, 0.36 * len(means) + 1
    figure, (axis,) = forms.subplots(size=size, phone=size[1])
    places = {kind: place for place, kind in enumerate(means.index)}
    single = [places[kind] for kind in found.overlap["kind"]]
    axis.plot(found.overlap["mean"], single, "o", color=NEUTRAL, ms=3, alpha=0.6)
    spread = common.spread(means, "mean")
    axis.errorbar(means["mean"], list(places.values()), xerr=spread, fmt="D", color=ANSWER, ms=5)
    axis.axvline(found.chance, color="black", lw=0.8, ls=":")
    axis.set_yticks(list(places.values()), [forms.wrapped(ALIKE[kind], 24) for kind in means.index])
    axis.invert_yaxis()
    label = forms.wrapped("Jaccard of two circuits (dotted: chance)", 26)
    axis.set(xlabel=label, xlim=(0, 1))
    return closed(figure)


def overlap_told(found: Specificity) -> Markdown:
    """How much of the most that noise allows each kind of pair reaches."""
    means = _overlap_means(found)["mean"]
    most = means["halves"] - found.chance
    lines = []
    for kind, value in means.items():
        beyond = f", {(value - found.chance) / most:z.0%} of the most" if most > 0 else ""
        own = "shuffled weights" in str(kind) or kind == "halves"
        lines.append(f"- {ALIKE[str(kind)]}: {value:.2f}{'' if own else beyond}")
    return Markdown(
        f"Mean Jaccard; random circuits share {found.chance:.2f}. The most that can be expected is "
        "what two halves of one task's prompts reach, and shares of it are beyond chance:\n\n"
        + "\n".join(lines)
    )


def stability_told(found: Specificity) -> Markdown:
    """How far each task's circuit depends on the prompts and sentences drawn."""
    lines = [
        f"- {TITLES[row['task']]}: pairwise Jaccard {row['mean']:.2f} [{row['low']:.2f}, "
        f"{row['high']:.2f}]; in {row['in']}, uncertain {row['uncertain']}"
        for row in found.stability.to_dict("records")
    ]
    return Markdown(
        f"Over {found.n_repeats} resamples of prompts and sentences, {found.n_kept} components "
        f"each; *in* are those whose frequency's interval lies above {SURE:.0%}, *uncertain* those "
        f"where it lies neither there nor below {1 - SURE:.0%}:\n\n" + "\n".join(lines)
    )


@forms.two_forms
def inclusion_bars(found: Specificity) -> Figure:
    """How often components are in their sequence task's circuit, most often first."""
    kinds = found.tasks.set_index("task")["kind"]
    tasks = [task for task in found.stability["task"] if kinds[task] == SEQUENCES]
    figure, (axis,) = forms.subplots(size=(7.5, 2.8), phone=2.6)
    for task, colour in common.task_colours(tasks).items():
        rows = found.inclusion[found.inclusion["task"] == task].sort_values(
            "share", ascending=False, kind="stable"
        )
        places = range(1, len(rows) + 1)
        axis.plot(places, rows["share"], color=colour, label=TITLES[task])
        axis.fill_between(places, rows["low"], rows["high"], color=colour, alpha=0.2, lw=0)
    axis.axhspan(SURE, 1, color=NEUTRAL, alpha=0.12, lw=0)
    axis.axhspan(0, 1 - SURE, color=NEUTRAL, alpha=0.12, lw=0)
    axis.axvline(found.n_kept, color="black", lw=0.8, ls=":")
    label = forms.wrapped("component, by frequency (dotted: size of a circuit)")
    axis.set(xlabel=label, ylabel="in the circuit")
    axis.set(ylim=(0, 1.02))
    axis.legend(fontsize=8)
    return closed(figure)

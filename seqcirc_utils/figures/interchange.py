"""Figures, tables and sentences of the chapter on interchange."""

from pathlib import Path

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from seqcirc_utils.chapters.interchange import Interchange
from seqcirc_utils.figures import forms
from seqcirc_utils.figures.style import ANSWER, LAST, NEUTRAL, bounded, closed, in_short, many
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.statistics import short

LEVEL = 0.05
OUTCOMES = {
    "wanted": ("the interchanged answer", ANSWER),
    "own": ("the prompt's own answer", NEUTRAL),
    "token": ("the source prompt's answer", LAST),
    "other": ("anything else", "#d5d5d5"),
}
"""What the model may say, with words and colours."""


def _title(task: str) -> str:
    return TASKS[task].title.lower()


def _across(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["source"] != rows["base"]]


def _mean(rows: pd.DataFrame) -> pd.Series:
    """Mean over pairs of tasks, the same pairs of prompts in each."""
    return rows[list(OUTCOMES)].mean()


def _share(rows: pd.DataFrame) -> str:
    """Mean share of interchanged answers over pairs of tasks, with their mean 95% bounds.

    A mean over pairs varies less than one pair does, so the bounds are wider than they need be.
    """
    return bounded(rows[["wanted", "wanted_low", "wanted_high"]].mean())


def _at_best(found: Interchange, kind: str) -> pd.DataFrame:
    """Rows of the chosen layer, on the prompts that it was not chosen on."""
    rows = found.layers[found.layers["half"] == "judging"]
    return rows[(rows["layer"] == found.best) & (rows["kind"] == kind)]


def headline(found: Interchange) -> Markdown:
    """The chapter's finding in a sentence or two."""
    if found.best is None:
        return in_short(
            "At no layer does the model answer with the place in the sequence that was put in from "
            "another task: nothing shows that the tasks share a code for it."
        )
    across, same = (part(_at_best(found, "deviation")) for part in (_across, _same))
    return in_short(
        f"Before block {found.best} of {found.n_layers}, a prompt is given what a prompt of "
        "another task holds beyond that task's mean. The model then answers with the other "
        f"prompt's place in the sequence in {_share(across)} of cases, in {_share(same)} if both "
        f"are of one task, and in {_share(_at_best(found, 'placebo'))} after a move as long in a "
        "random direction."
        f"{_heads_in_short(found)}"
    )


def numbers(found: Interchange) -> dict[str, str]:
    """What the book's first page quotes: shares of interchanged answers, with intervals."""
    told = dict.fromkeys(("layer", "across", "same", "placebo"), "none")
    if found.best is not None:
        rows = _at_best(found, "deviation")
        parts = {"across": _across(rows), "same": _same(rows)}
        parts["placebo"] = _at_best(found, "placebo")
        told = {name: _share(part) for name, part in parts.items()}
        told["layer"] = str(found.best)
    heads = _across(found.heads[found.heads["kind"] == "deviation"])
    for name in ("shared heads", "random heads"):
        part = heads[heads["set"] == name]
        told[name.replace(" ", "-")] = _share(part) if len(part) else "none"
    return {f"interchange-{name}": value for name, value in told.items()}


def _heads_in_short(found: Interchange) -> str:
    if found.heads.empty:
        return ""
    rows = _across(found.heads)
    sets = dict(list(rows[rows["kind"] == "deviation"].groupby("set")))
    random = sets.get("random heads")
    beside = (
        "" if random is None else f", with as many random heads of like layers in {_share(random)}"
    )
    return (
        f" With what the {len(found.shared)} shared heads alone hold it does so in "
        f"{_share(sets['shared heads'])}{beside}."
    )


def _same(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["source"] == rows["base"]]


@forms.two_forms
def layer_curves(found: Interchange) -> Figure:
    """What the model says by the layer of the swap: raw and deviation, across tasks and within."""
    rows = found.layers.groupby(["kind", "layer", "source", "base"], as_index=False)[
        list(OUTCOMES)
    ].mean()
    panels = {
        "raw, another task": _across(rows[rows["kind"] == "raw"]),
        "deviation, another task": _across(rows[rows["kind"] == "deviation"]),
        "deviation, the same task": _same(rows[rows["kind"] == "deviation"]),
        "placebo": rows[rows["kind"] == "placebo"],
    }
    figure, axes = forms.subplots(1, 4, size=(10.5, 2.9), phone=6.8, sharey=True, sharex=True)
    for axis, (title, part) in zip(axes, panels.items(), strict=True):
        means = part.groupby("layer")[list(OUTCOMES)].mean()
        axis.stackplot(
            means.index,
            *(100 * means[name] for name in OUTCOMES),
            colors=[colour for _, colour in OUTCOMES.values()],
            labels=[words for words, _ in OUTCOMES.values()],
        )
        if found.best is not None:
            axis.axvline(found.best, color="black", lw=0.8, ls=":")
        axis.set(title=title, ylim=(0, 100), xlim=(0, found.n_layers))
    for axis in axes[: forms.either(1, 4)]:
        axis.set_ylabel("% of prompts")
    figure.supxlabel("swapped before block", fontsize=10)
    ncols = forms.either(4, 1)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=ncols, loc="outside upper center")
    return closed(figure)


def save_curves(found: Interchange, directory: Path) -> None:
    """Write the curves for the book's first page, as :func:`.forms.save` does."""
    forms.save(layer_curves(found), directory / "interchange")


@forms.two_forms
def pair_grid(found: Interchange) -> Figure | Markdown:
    """The interchanged answer by pair of tasks at the chosen layer, on prompts not chosen on."""
    if found.best is None:
        return Markdown("Not here: no layer gives a wanted answer across tasks.")
    rows = _at_best(found, "deviation")
    grid = 100 * rows.pivot(index="source", columns="base", values="wanted")
    order = list(dict.fromkeys(rows["source"]))
    grid = grid.loc[order, order]
    figure, (axis,) = forms.subplots(size=(4.6, 3.4), phone=3)
    image = axis.imshow(grid, cmap="Blues", vmin=0, vmax=100)
    cells, size = rows.set_index(["source", "base"]), forms.either(9, 7)
    for y, source in enumerate(order):
        for x, base in enumerate(order):
            r = cells.loc[(source, base)]
            text = f"{100 * r['wanted']:.0f}\n[{100 * r['wanted_low']:.0f}, "
            text += f"{100 * r['wanted_high']:.0f}]"
            shade = "white" if r["wanted"] > 0.6 else "black"
            axis.text(x, y, text, ha="center", va="center", color=shade, fontsize=size)
    titles = [_title(task).replace(" ", "\n") for task in order]  # side by side they would touch
    axis.set_xticks(range(len(order)), titles)
    axis.set_yticks(range(len(order)), titles)
    axis.set(xlabel="prompt that is changed", ylabel="prompt that is put in")
    figure.colorbar(image, ax=axis, label="% interchanged answers", shrink=0.8)
    return closed(figure)


def layers_told(found: Interchange) -> Markdown:
    """What raw swaps and deviations bring along, at the layer of most interchanged answers."""
    if found.best is None:
        return Markdown(
            "At no layer and for no pair of different tasks was the interchanged answer given on "
            "the prompts for choosing a layer."
        )
    lines = []
    for kind in ("raw", "deviation"):
        mean = _mean(_across(_at_best(found, kind)))
        lines.append(
            f"- {kind}: the interchanged answer {mean['wanted']:.0%}, the prompt's own "
            f"{mean['own']:.0%}, the source prompt's own word {mean['token']:.0%}, others "
            f"{mean['other']:.0%}"
        )
    n = int(_at_best(found, "raw")["n"].iloc[0])
    return Markdown(
        f"Before block {found.best}, from another task, on {many(n, 'prompt')} of each pair of "
        "tasks that the layer was not chosen on:\n\n" + "\n".join(lines)
    )


@forms.two_forms
def head_bars(found: Interchange) -> Figure | Markdown:
    """How far swaps of heads move the answer across tasks, with the same task as a bound."""
    if "heads" in found.missing:
        return Markdown(f"Not here: {found.missing['heads']}")
    rows = found.heads[found.heads["kind"] == "deviation"]
    sets = list(dict.fromkeys(rows["set"]))
    across, same = (
        part(rows).groupby("set")[["shift", "shift_low", "shift_high"]].mean().reindex(sets)
        for part in (_across, _same)
    )
    size = 7, 0.3 * len(sets) + 1.2
    figure, (axis,) = forms.subplots(size=size, phone=size[1])
    for y, (part, colour, label) in enumerate(
        ((across, ANSWER, "from another task"), (same, NEUTRAL, "from the same task"))
    ):
        places = [i + 0.2 * (2 * y - 1) for i in range(len(sets))]
        spread = [part["shift"] - part["shift_low"], part["shift_high"] - part["shift"]]
        axis.errorbar(part["shift"], places, xerr=spread, fmt="o", color=colour, label=label, ms=4)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(sets)), sets)
    axis.invert_yaxis()
    axis.set_xlabel(forms.wrapped("gain of the interchanged answer on the prompt's own (nats)", 34))
    axis.legend(loc="lower right", fontsize=8)
    return closed(figure)


def heads_told(found: Interchange) -> Markdown:
    """Whether the shared heads move the answer more than random heads do."""
    if "heads" in found.missing:
        return Markdown(f"Not here: {found.missing['heads']}")
    rows = _across(found.heads)
    means = rows[rows["kind"] == "deviation"].groupby("set")[["wanted", "shift"]].mean()
    named = {
        "shared heads": f"the {len(found.shared)} shared heads",
        "own heads": "the other heads of the changed prompt's circuit",
        "random heads": "random heads of like layers",
    }
    lines = [
        f"- {words}: interchanged answers {means.loc[name, 'wanted']:.0%}, gain "
        f"{means.loc[name, 'shift']:+.2f} nats"
        for name, words in named.items()
        if name in means.index
    ]
    single = means.loc[[name for name in means.index if name.startswith("head ")], "shift"]
    if len(single) > 1:
        lines.insert(1, f"- of these alone, {single.idxmax()} most: gain {single.max():+.2f} nats")
    tests, text = found.tests, ""
    if len(tests):
        sure = tests[tests["q"] < LEVEL]
        listed = "; ".join(
            f"{_title(r.source)} into {_title(r.base)} (q = {short(r.q)})"
            for r in sure.itertuples()
        )
        draws = tests["draws"].max()
        text = (
            f"\n\nPairs of tasks where the shared heads shift the answer more than random ones "
            f"(q < {LEVEL}): {len(sure)} of {len(tests)}{': ' + listed if listed else ''}. With "
            f"{many(draws, 'random set')} a test could give p = {short(1 / (draws + 1))}."
        )
    return Markdown("From another task, as a deviation:\n\n" + "\n".join(lines) + text)


def subspace_told(found: Interchange) -> Markdown:
    """What swapping a few directions does, on the pair of tasks of the search and on others."""
    if "subspace" in found.missing:
        return Markdown(f"Not here: {found.missing['subspace']}")
    rows = found.subspace
    fitted = rows["fitted"].iloc[0]
    pair = rows["source"] + " to " + rows["base"]
    different = rows["source"] != rows["base"]
    lines = []
    for name, words in (("found", "the directions found"), ("random", "as many random ones")):
        part = rows["directions"] == name
        own, others = rows[part & (pair == fitted)], rows[part & (pair != fitted) & different]
        lines.append(
            f"- {words}: {own['wanted'].mean():.0%} interchanged answers on the pair they were "
            f"fitted on (other prompts), {others['wanted'].mean():.0%} on other pairs of tasks"
        )
    source, base = fitted.split(" to ")
    return Markdown(
        f"{found.rank} directions before block {found.best}, found on {_title(source)} into "
        f"{_title(base)}:\n\n" + "\n".join(lines)
    )

"""Damage by dose, drawn and told: a sequence without its own strongest heads, and without others'.

A part of the chapter on specificity.
"""

from collections.abc import Sequence

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from seqcirc_utils.chapters.doses import BY_SETS, BY_TASKS, CIRCUIT, RANDOM
from seqcirc_utils.chapters.ranked_tasks import KINDS, OUTSIDE, REPEAT, SEQUENCES, TITLES
from seqcirc_utils.chapters.specificity import Specificity
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import (
    ANSWER,
    LAST,
    NEUTRAL,
    OKABE_ITO,
    bounded,
    closed,
    enumerated,
)

AGAINST = {
    SEQUENCES: "the other sequences",
    REPEAT: "repeating in the same sentences",
    OUTSIDE: "outside tasks",
}
OWN = "own"
_LINES = {
    OWN: ("its own strongest", "black", "o"),
    SEQUENCES: ("the other sequences'", ANSWER, "s"),
    REPEAT: ("repeating's", LAST, "^"),
    OUTSIDE: ("outside tasks'", OKABE_ITO[2], "D"),
    RANDOM: ("random ones, same layers", NEUTRAL, "x"),
}
"""Whose heads are lost: in words, colour and marker."""


def bounds(row: pd.Series) -> str:
    """A difference of shares with its interval, in points."""
    return bounded(row[["mean", "low", "high"]], " points")


def levels(found: Specificity) -> pd.DataFrame:
    """Mean damage to the sequence tasks ``[dose, whose heads]``, on the prompts that judge."""
    kinds = found.tasks.set_index("task")["kind"]
    rows = found.dosed[found.dosed["task"].map(kinds) == SEQUENCES]
    own = rows["set"] == rows["task"]
    whose = rows["set"].map(kinds).mask(own, OWN)
    whose = whose.mask(rows["kind"] == RANDOM, RANDOM)
    rows = rows[own | (rows["kind"] == CIRCUIT)].assign(whose=whose)
    # The others of each task first: every task weighs the same.
    by_task = rows.groupby(["dose", "whose", "task"])["mean"].mean()
    return by_task.groupby(["dose", "whose"]).mean().unstack()


def expected(found: Specificity) -> pd.Series:
    """Mean own damage by dose on the prompts that rank, which chose the dose."""
    return found.dose_choice.groupby("dose")["damage"].mean()


def row(
    found: Specificity, against: str, by: str = BY_SETS, kind: str = CIRCUIT
) -> pd.Series | None:
    """Own minus others of the sequence tasks together, at the chosen dose."""
    rows = found.dose_index
    rows = rows[(rows["dose"] == found.dose) & (rows["set"] == SEQUENCES)]
    rows = rows[(rows["by"] == by) & (rows["kind"] == kind) & (rows["against"] == against)]
    return None if rows.empty else rows.iloc[0]


SAME = "the same heads"
"""What own heads minus others' are called, where these are no others."""


def in_common(found: Specificity, against: str) -> float:
    """How many of a sequence's own heads are those of what is compared, too: a mean over pairs."""
    rows = found.dose_heads[found.dose_heads["place"] <= found.dose]
    heads = {task: set(some["head"]) for task, some in rows.groupby("task")}
    kinds = dict(zip(found.tasks["task"], found.tasks["kind"], strict=True))
    pairs = [
        len(heads[own] & heads[other])
        for own in heads
        for other in heads
        if kinds[own] == SEQUENCES and other != own and against in (other, kinds[other])
    ]
    return sum(pairs) / len(pairs)


def verdict(found: Specificity, against: str, difference: pd.Series) -> str:
    """What own minus others says: of the very same heads it can say nothing."""
    if against != RANDOM and in_common(found, against) == found.dose:
        return SAME
    return sign(difference, "own heads matter more", "own heads matter less", "undecided")


def sign(difference: pd.Series, more: str, less: str, neither: str) -> str:
    """Which of three the interval says: above zero, below it, or neither."""
    return more if difference["low"] > 0 else less if difference["high"] < 0 else neither


NEAR = (0.25, 0.75)
"""Between these, own damage is called about half."""


@common.needs("doses")
@forms.two_forms
def curves(found: Specificity) -> Figure:
    """What a sequence loses, and own minus others, by the number of heads lost."""
    means, chosen = 100 * levels(found), found.dose
    doses = list(means.index)
    figure, (left, right) = forms.subplots(1, 2, size=(11, 3.9), phone=6.6)
    for whose, (words, colour, marker) in _LINES.items():
        if whose in means:
            left.plot(doses, means[whose], color=colour, marker=marker, ms=5, label=words)
    known = 100 * expected(found)
    left.plot(known.index, known, "o", mfc="none", mec="black", label="own, prompts that rank")
    left.axhline(50, color="black", lw=0.6, ls="--")
    left.set(title="lost by a sequence task", ylabel="damage (% of the logit difference)")
    rows = found.dose_index
    rows = rows[(rows["set"] == SEQUENCES) & (rows["by"] == BY_SETS)]
    for i, (whose, (_, colour, marker)) in enumerate(_LINES.items()):
        some = rows[rows["against"] == whose].sort_values("dose")
        values = some[["mean", "low", "high"]] * 100
        places = some["dose"] * 1.035 ** (i - 2.5)  # beside each other
        width = common.spread(values, "mean")
        right.errorbar(
            places, values["mean"], yerr=width, color=colour, marker=marker, ms=5, lw=1.2
        )
    right.axhline(0, color="black", lw=0.8)
    right.set(title="own minus others", ylabel="own minus others' damage (points)")
    for axis in (left, right):
        axis.axvline(chosen, color="black", lw=0.8, ls=":")
        axis.set_xscale("log", base=2)
        axis.set_xticks(doses, doses)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("heads lost (dotted: the dose that is judged)")
    figure.legend(
        *left.get_legend_handles_labels(), ncols=forms.either(3, 1), loc="outside upper center"
    )
    return closed(figure)


@common.needs("doses")
@forms.two_forms
def matrix(found: Specificity) -> Figure:
    """Every task's strongest heads on every task, at the chosen dose."""
    rows = found.dosed[(found.dosed["dose"] == found.dose) & (found.dosed["kind"] == CIRCUIT)]
    order = list(found.tasks["task"])
    grid = 100 * rows.pivot(index="set", columns="task", values="mean").loc[order, order]
    grid = grid.rename(index=TITLES, columns=TITLES)
    figure, (axis,) = forms.subplots(size=(6.4, 4.3), phone=3.6)
    texts = grid.map(lambda v: f"{v:z.0f}")
    common.heatmap(axis, grid, texts, 150, label="% of the logit difference", extend="both")
    axis.set(title=f"damage without {_heads(found.dose)}", xlabel="task", ylabel="heads of")
    axis.tick_params(axis="x", rotation=40)
    return closed(figure)


def _heads(n: int) -> str:
    return "the strongest head" if n == 1 else f"the {n} strongest heads"


@common.needs("doses")
def told(found: Specificity) -> Markdown:
    """How the dose was chosen, and what is lost there by whose heads."""
    known, own = expected(found), 100 * levels(found).loc[found.dose, OWN]
    tried = ", ".join(f"{100 * value:z.0f}% ({dose})" for dose, value in known.items())
    far = "" if NEAR[0] <= known[found.dose] <= NEAR[1] else ", though not near it"
    lines, single = [], _single(found)
    for whose in (*KINDS, *single, RANDOM):
        difference = row(found, whose)
        if difference is not None:
            indent = "    " if whose in single else ""
            lines.append(f"{indent}- {_line(found, whose, difference)}")
    return Markdown(
        f"On the prompts that rank, a sequence loses with its own strongest heads (their number "
        f"in brackets) {tried}. Nearest to half{far}: **{found.dose}**. On the prompts that judge "
        f"it loses {own:z.0f}% with its own {found.dose}, and with as many of\n\n"
        + "\n".join(lines)
        + _elsewhere(found)
    )


def _single(found: Specificity) -> list[str]:
    """The outside tasks, where there are several."""
    names = found.tasks.loc[found.tasks["kind"] == OUTSIDE, "task"].tolist()
    return names if len(names) > 1 else []


def _line(found: Specificity, whose: str, difference: pd.Series) -> str:
    """What as many heads of others cost, and own minus that."""
    names = AGAINST | {RANDOM: "random heads of the same layers"}
    theirs = 100 * (levels(found).loc[found.dose, OWN] - difference["mean"])
    shared = (
        "" if whose == RANDOM else f" ({in_common(found, whose):.2g} of {found.dose} in common)"
    )
    return (
        f"{names.get(whose) or TITLES[whose]}: {theirs:z.0f}%; own minus theirs "
        f"{bounds(difference)}, {verdict(found, whose, difference)}{shared}"
    )


def _elsewhere(found: Specificity) -> str:
    """What the same heads cost other tasks, beside random ones: tasks are not alike frail."""
    lines = []
    for against in KINDS:
        difference = row(found, against, BY_TASKS)
        if difference is None:
            continue
        random = row(found, against, BY_TASKS, RANDOM)
        beside = "" if random is None else f" (random heads of the same layers: {bounds(random)})"
        lines.append(f"- {AGAINST[against]}: {bounds(difference)}{beside}")
    if not lines:
        return ""
    return (
        "\n\nThe same heads on other tasks: the loss of a sequence's heads costs the sequence more "
        "than it costs\n\n" + "\n".join(lines)
    )


def short(found: Specificity) -> list[str]:
    """The answer at the chosen dose, for the chapter's head; nothing where there is no dose."""
    rows = {against: row(found, against) for against in (*KINDS, *_single(found))}
    said = [
        (
            f"{verdict(found, against, difference)}:",
            f"{AGAINST.get(against) or TITLES[against]} ({bounds(difference)})",
        )
        for against, difference in rows.items()
        if difference is not None
    ]
    if not said:
        return []
    own, known = 100 * levels(found).loc[found.dose, OWN], 100 * expected(found)[found.dose]
    return [
        f"*Lost by a sequence without {_heads(found.dose)}* (nearest to half: {known:z.0f}% on "
        f"prompts that do not judge): {own:z.0f}%. That minus the loss without as many heads of "
        f"other tasks: {grouped(said)}."
    ]


def grouped(said: Sequence[tuple[str, str]]) -> str:
    """What is said of each, told once for all of which the same is said."""
    groups = {what: [name for other, name in said if other == what] for what, _ in said}
    return "; ".join(f"{what} {enumerated(names)}" for what, names in groups.items())


def numbers(found: Specificity) -> dict[str, str]:
    """What other pages quote."""
    quoted = {"dose": str(found.dose)}
    for against in (*KINDS, RANDOM):
        difference = row(found, against)
        told = "none" if difference is None else bounds(difference)
        same = difference is not None and verdict(found, against, difference) == SAME
        quoted[f"dose-{against}"] = f"{told} ({SAME})" if same else told
    return quoted

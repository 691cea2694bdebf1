"""How the findings beyond the tasks look."""

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from seqcirc_utils.chapters.generalisation import Generalisation
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import ANSWER, LAST, NEUTRAL, closed, in_short, many
from seqcirc_utils.statistics import MIN_DRAWS, short

LEVEL = 0.05
"""A corrected p-value below this gets a star."""
LEAST = 0.001
"""Corrected p-values below this are told as such."""


def numbers(found: Generalisation) -> dict[str, str]:
    """The numbers that the book's prose quotes, by name."""
    return {
        "generalisation-probes": str(len(found.probes)),
        "generalisation-used": str(found.probes["used"].sum()),
    }


@forms.two_forms
def probe_accuracy(found: Generalisation) -> Figure:
    """The model's own accuracy on each probe with exact 95% intervals, by group of probes."""
    table = found.probes
    # A gap before each new group; the first group stands on top.
    y = -(np.arange(len(table)) + (table["group"] != table["group"].shift()).cumsum()).to_numpy()
    size = 7, 0.22 * -y[-1] + 1.1
    figure, (axis,) = forms.subplots(size=size, phone=size[1])
    for used, colour, label in (
        (True, ANSWER, "can do it: ablated below"),
        (False, LAST, "cannot do it"),
    ):
        rows = ((table["used"] == used) & table["accuracy"].notna()).to_numpy()
        spread = common.spread(table[rows], "accuracy")
        look = {"fmt": "o" if used else "s", "ms": 5, "lw": 1.2, "color": colour, "label": label}
        axis.errorbar(table["accuracy"][rows], y[rows], xerr=spread, **look)
    axis.scatter(table["chance"], y, marker="|", s=60, color="black", label="guessing", zorder=3)
    for row in np.flatnonzero(table["accuracy"].isna()):
        axis.text(0.5, y[row], "not in the tokenizer's words", va="center", fontsize=8)
    for group, rows in table.groupby("group", sort=False).indices.items():
        axis.text(1.03, y[rows].mean(), group, va="center", fontsize=9, color=NEUTRAL)
    axis.set_yticks(y, table["title"], fontsize=9)
    axis.set(xlabel="accuracy (the whole answer is right)", xlim=(-0.02, 1.02))
    axis.set_ylim(y[-1] - 0.7, -0.3)
    ncols = forms.either(3, 1)
    axis.legend(ncols=ncols, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    return closed(figure)


def abilities_told(found: Generalisation) -> Markdown:
    """How many probes the model can do, and why the others, and circuits, are left out."""
    failed = found.probes[~found.probes["used"]]
    lines = [f"- {r.title} ({r.group}): {r.reason}" for r in failed.itertuples()] or ["- none"]
    lines += [f"- the circuit of {title}: {reason}" for title, reason in found.without.items()]
    return Markdown(
        f"{found.model} can do **{found.probes['used'].sum()} of {len(found.probes)}** probes by "
        "this rule. Left out, and why:\n\n" + "\n".join(lines)
    )


def question_table(found: Generalisation) -> Styler:
    """A question of each probe, and how the model answers."""
    table = found.probes[["title", "example", "n", "accuracy", "logit_diff"]]
    names = {"title": "probe", "n": "questions", "logit_diff": "log p(answer) - log p(wrong)"}
    table = table.rename(columns=names)
    look = common.styled(table, "questions", **{"font-size": "85%"})
    return look.hide(axis="index").format(precision=2, na_rep="", escape="html")


@common.needs("effects")
@forms.two_forms
def effect_map(found: Generalisation, kind: str) -> Figure:
    """Accuracy lost by one kind of ablation of each set, beyond what matched random sets lose.

    Each cell gives the accuracy after the ablation and, in brackets, the mean after ablating
    random sets; its colour is the difference in percentage points; a star marks q below
    :data:`LEVEL`. Where nothing random was drawn, the colour is the accuracy lost.
    """
    table = found.effects[found.effects["kind"] == kind]
    random = table["random_mean"].fillna(table["accuracy_before"])
    star = np.where(table["q"] < LEVEL, "*", "")
    beside = table["random_mean"].map("\n({:.2f})".format).where(table["random_mean"].notna(), "")
    cells = table.assign(
        beyond=100 * (table["accuracy_after"] - random),
        text=table["accuracy_after"].map("{:.2f}".format) + star + beside,
        probe=table["probe"].map(found.probes.set_index("probe")["title"]),
        set=table["set"] + forms.either("\n(", " (") + table["n_heads"].astype(str) + ")",
    )
    sets, probes = cells["set"].unique(), cells["probe"].unique()
    grid, texts = (
        cells.pivot(index="probe", columns="set", values=values).loc[probes, sets]
        for values in ("beyond", "text")
    )
    size = 0.62 * len(sets) + 2.2, 0.4 * len(probes) + 1.5
    figure, (axis,) = forms.subplots(size=size, phone=size[1] + 0.6)
    lost = table["random_mean"].isna().all()
    label = "change of accuracy" if lost else "accuracy, minus random's"
    common.heatmap(axis, grid, texts, 100, fontsize=7, label=label, format="%+d pts")
    tilt = forms.either(40, 60)
    axis.set_xticks(axis.get_xticks(), sets, fontsize=8, rotation=tilt, ha="right")
    axis.set(xlabel="heads ablated (how many)", ylabel="")
    return closed(figure)


@common.needs("effects")
def effects_told(found: Generalisation) -> Markdown:
    """What is left of the answers without each set of heads, and how many p-values stand out."""
    effects, used = found.effects, found.probes["used"].sum()
    lines = [_set_told(name, rows) for name, rows in effects.groupby("set", sort=False)]
    text = f"Averaged over {many(used, 'probe')} that the model can do:\n\n" + "\n".join(lines)
    tested = effects["p"].notna()
    if tested.any():
        text += (
            f"\n\nEach of {tested.sum()} cells was tested against up to "
            f"{effects['n_draws'].max()} random sets; corrected for all of them, the smallest q is "
            f"{_q(effects['q'].min()).removeprefix('= ').replace('<', 'below')}."
        )
    else:
        text += f"\n\nNothing was tested: a test needs at least {MIN_DRAWS} random sets."
    if found.headless:
        text += f" Without heads, and so left out: {', '.join(found.headless)}."
    return Markdown(text)


def _q(value: float) -> str:
    """A q: far below 1 in the number of draws it is the fitted law's, and not told exactly."""
    return f"< {LEAST:g}" if value < LEAST else f"= {short(value)}"


def _set_told(name: str, rows: pd.DataFrame) -> str:
    """What is left without one set of heads, by either ablation."""
    mean, zero = (rows[rows["kind"] == kind] for kind in ("mean", "zero"))
    size, tested = rows["n_heads"].iloc[0], mean[mean["p"].notna()]
    beside = beyond = ""
    if mean["random_mean"].notna().any():
        beside = f" (random sets {mean['random_mean'].mean():.0%})"
    if len(tested):
        sure = (tested["q"] < LEVEL).sum()
        beyond = f"; beyond random sets (q < .05) on {sure} of {len(tested)} probes"
    return (
        f"- {name} ({many(size, 'head')}): {mean['accuracy_after'].mean():.0%} of "
        f"answers survive mean ablation{beside}, {zero['accuracy_after'].mean():.0%} survive zero "
        f"ablation{beyond}."
    )


@forms.two_forms
def planned_figure(found: Generalisation) -> Figure | Markdown:
    """What each set costs beyond random sets, by subject of the paper, with 95% intervals."""
    table = found.planned[found.planned["kind"] == "mean"]
    if table.empty:
        return Markdown(f"Not here: {found.missing.get('effects', 'no random set was drawn.')}")
    subjects, sets = table["subject"].unique(), table["set"].unique()
    size = 2 * len(subjects) + 1.6, 0.32 * len(sets) + 1.3
    phone = len(subjects) * (0.26 * len(sets) + 0.6) + 0.6
    figure, axes = forms.subplots(
        1, len(subjects), size=size, phone=phone, sharex=True, sharey=True
    )
    for axis, subject in zip(axes, subjects, strict=True):
        rows = table[table["subject"] == subject].set_index("set").reindex(sets)
        low, high = rows["gap"] - rows["gap_low"], rows["gap_high"] - rows["gap"]
        sure = rows["q"] < LEVEL
        for part, colour in ((sure, ANSWER), (~sure, NEUTRAL)):
            axis.errorbar(
                100 * rows["gap"][part],
                np.flatnonzero(part),
                xerr=100 * np.array([low[part], high[part]]),
                fmt="o",
                color=colour,
            )
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(f"{subject}\n({rows['n'].max():.0f} questions)", fontsize=8)
    axes[0].set_yticks(range(len(sets)), sets)
    axes[0].invert_yaxis()
    figure.supxlabel("points lost beyond random sets", fontsize=9)
    return closed(figure)


def planned_told(found: Generalisation) -> Markdown:
    """How many planned tests found something, and what they could have found."""
    table = found.planned
    if table["p"].isna().all():
        return Markdown(f"No planned test was made: each needs at least {MIN_DRAWS} random sets.")
    found_it = table["q"] < LEVEL
    said = f"{found_it.sum()} of {many(len(table), 'planned test')} found more harm than random "
    said += f"sets do (q < {LEVEL:g})."
    for title, rows in (("Found it", table[found_it]), ("Did not", table[~found_it])):
        named = [f"{r.set} on {r.subject} (q {_q(r.q)})" for r in rows.itertuples()]
        said += f"\n- **{title}:** {'; '.join(named)}." if named else ""
    return Markdown(
        f"{said}\n\nHalf of the tests could have found a loss of "
        f"{table['needed'].median():.2f} nats per answer or less. In the median, random sets cost "
        f"{table['random_loss'].median():.2f} and the tested sets "
        f"{table['loss'].median():.2f}.{_twins_told(table)}"
    )


def _distinct(planned: pd.DataFrame) -> pd.DataFrame:
    """Planned tests, once for sets of the same heads: what is lost is then the same number."""
    return planned.drop_duplicates(["kind", "subject", "n_heads", "loss", "random_loss"])


def _twins_told(planned: pd.DataFrame) -> str:
    """Which sets are the same heads under two names, so that their tests are one test."""
    losses = planned.pivot(index="set", columns=["kind", "subject"], values="loss")
    sizes = planned.groupby("set")["n_heads"].first()
    groups: dict[tuple[float, ...], list[str]] = {}
    for name, values in losses.round(12).iterrows():
        groups.setdefault((sizes[name], *values), []).append(str(name))
    return "".join(
        f" The same heads under two names are {' and '.join(names)}: their tests are one test."
        for names in groups.values()
        if len(names) > 1
    )


@common.needs("effects")
def group_table(found: Generalisation) -> Styler:
    """What ablating the shared core and the key heads leaves of each group of probes."""
    rows = found.effects[found.effects["set"].isin(["shared core", "key heads"])]
    means = rows.groupby(["group", "kind", "set"], sort=False)[["accuracy_after", "random_mean"]]
    names = {"accuracy_after": "accuracy afterwards", "random_mean": "random sets"}
    table = means.mean().rename(columns=names).rename_axis(["group", "ablation", "heads"])
    return common.styled(table, "groups").format(precision=2, na_rep="not drawn")


def headline(found: Generalisation) -> Markdown:
    """The chapter's finding in a sentence or two."""
    used = found.probes["used"].sum()
    said = f"The model can do {used} of {len(found.probes)} other things that it is asked."
    table = _distinct(found.planned[found.planned["kind"] == "mean"])
    if len(table):
        sure = (table["q"] < LEVEL).sum()
        said += (
            f" Of what the paper reports on, it loses {100 * table['gap'].mean():.0f} points more "
            "without the heads of the circuits, or the key heads, than without random ones, on "
            f"average over {len(table)} planned tests. In "
            f"{sure} of these tests chance can be ruled out (q < {LEVEL:g})."
        )
    return in_short(said)

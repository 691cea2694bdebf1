"""Figures, tables and sentences of the chapter across models."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from seqcirc_utils.analyses.roles import HEAD_ROLES, MLP_ROLES
from seqcirc_utils.figures import forms
from seqcirc_utils.figures.style import ANSWER, LAST, NEUTRAL, OKABE_ITO, closed
from seqcirc_utils.paper.across_models import LEVEL, AcrossModels
from seqcirc_utils.paper.effects import VERDICTS
from seqcirc_utils.statistics import short

_UNTOLD = "There is nothing to draw: "


def _titles(found: AcrossModels) -> dict[str, str]:
    return found.models.set_index("name")["title"].to_dict()


def _lines(found: AcrossModels, names: Iterable[str]) -> list[str]:
    """The models' titles, beside the rows of a figure."""
    return [forms.wrapped(_titles(found)[name], 12) for name in names]


def models_told(found: AcrossModels) -> Markdown:
    """Whose results are compared, and what makes those that are missing."""
    rows = found.models
    here = rows[rows["here"]]
    named = ", ".join(f"{r.title} ({r.layers} × {r.heads} heads)" for r in here.itertuples())
    absent = rows[~rows["here"]]
    lines = [f"Results of {len(here)} model{'s' * (len(here) != 1)} are here: {named or 'none'}."]
    if len(here) == 1:
        lines[0] = f"**One model's results are here**, those of {named}: nothing is compared."
    lines += [f"`{r.name}` is missing; to make it, run `{r.command}`." for r in absent.itertuples()]
    lines += [
        f"Of `{r.name}`, this cannot be compared: {r.missing}."
        for r in here.itertuples()
        if r.missing
    ]
    return Markdown("\n\n".join(lines))


def shared_table(found: AcrossModels) -> pd.DataFrame:
    """Heads in the circuits of all tasks, by model, beside what chance gives."""
    shown = found.shared.assign(model=found.shared["model"].map(_titles(found)))
    for column in ("p", "layer_p"):  # some are far too small to be rounded
        shown[column] = [short(p, 1) for p in shown[column]]
    names = {"layer_expected": "expected, same layers", "layer_p": "p, same layers"}
    return shown.rename(columns={"total": "of", **names}).set_index("model").round(2)


@forms.two_forms
def shared_bars(found: AcrossModels) -> Figure | Markdown:
    """Shared heads by model, as shares of its heads, beside both kinds of chance."""
    table = found.shared
    if table.empty:
        return Markdown(f"{_UNTOLD}no model has shared circuits here.")
    size = 7, 0.9 * len(table) + 1.2
    figure, (axis,) = forms.subplots(size=size, phone=size[1])
    kinds = {"heads": ("shared", ANSWER), "layer_expected": ("chance, same layers", LAST)}
    kinds["expected"] = ("chance, any layers", NEUTRAL)
    for i, (column, (label, colour)) in enumerate(kinds.items()):
        place = np.arange(len(table)) + 0.26 * (i - 1)
        bars = axis.barh(place, 100 * table[column] / table["total"], 0.24, color=colour)
        axis.bar_label(bars, [f"{v:.3g}" for v in table[column]], padding=3, fontsize=8)
        bars.set_label(label)
    axis.set_yticks(np.arange(len(table)), _lines(found, table["model"]))
    axis.invert_yaxis()
    axis.set_xlabel("% of the model's heads (numbers: heads)")
    figure.legend(ncols=forms.either(3, 1), loc="outside upper center", fontsize=8)
    return closed(figure)


@forms.two_forms
def depth_map(found: AcrossModels) -> Figure | Markdown:
    """Depth of the components of each role, by model: median over tasks, and the whole range."""
    table = found.depth
    if table.empty:
        return Markdown(f"{_UNTOLD}no model's roles are told here.")
    models = list(dict.fromkeys(table["model"]))
    known = [r for r in (*HEAD_ROLES, *MLP_ROLES) if r in set(table["role"])]
    roles = known + sorted(set(table["role"]) - set(known))
    size = 7, 0.55 * len(roles) + 1.2
    figure, (axis,) = forms.subplots(size=size, phone=0.4 * len(roles) + 1.4)
    for i, model in enumerate(models):
        rows = table[table["model"] == model].groupby("role")
        ends, middle = rows.agg({"first": "min", "last": "max"}), rows["median"].mean()
        place = [roles.index(r) + 0.5 * ((i + 0.5) / len(models) - 0.5) for r in middle.index]
        colour = OKABE_ITO[i % len(OKABE_ITO)]
        axis.hlines(place, ends["first"], ends["last"], color=colour, lw=2, alpha=0.5)
        axis.scatter(middle, place, color=colour, s=30, label=_titles(found)[model], zorder=3)
    axis.set_yticks(range(len(roles)), [forms.wrapped(role, 14) for role in roles])
    axis.invert_yaxis()
    axis.set(xlim=(-0.02, 1.02), xlabel="depth (0: first layer, 1: last)")
    figure.legend(ncols=forms.either(3, 1), loc="outside upper center", fontsize=8)
    return closed(figure)


def order_told(found: AcrossModels) -> Markdown:
    """Whether the roles come in the same order."""
    titles, lines = _titles(found), []
    for r in found.order.itertuples():
        pair = f"{titles[r.first]} and {titles[r.second]}"
        if np.isnan(r.tau):
            lines.append(f"- {pair}: no two common roles whose depths differ, so no order.")
            continue
        said = (
            f"p = {short(r.p)}"
            if not np.isnan(r.p)
            else f"too few for a test (p ≥ {short(r.least)})"
        )
        lines.append(f"- {pair}: Kendall's τ = {r.tau:.2f} over {r.roles} ({said}).")
    return Markdown("\n".join(lines) or "With one model there is no second order of roles.")


@forms.two_forms
def swap_curves(found: AcrossModels) -> Figure | Markdown:
    """Interchanged answers by depth of the swap, a panel per model; dashed: the chosen layer."""
    table = found.swaps
    if table.empty:
        return Markdown(f"{_UNTOLD}no model's interchange is told here.")
    models = list(dict.fromkeys(table["model"]))
    size = (0.5 + 3.4 * len(models), 3.1)
    phone = 2.4 * len(models) + 1
    figure, axes = forms.subplots(1, len(models), size=size, phone=phone, sharey=True)
    looks = {  # the first two may lie on each other
        "the same task": {"color": NEUTRAL, "lw": 4, "alpha": 0.4},
        "another task": {"color": ANSWER, "marker": "o", "ms": 3},
        "placebo": {"color": LAST, "marker": "o", "ms": 3, "ls": ":"},
    }
    for axis, model in zip(axes, models, strict=True):
        rows = table[table["model"] == model]
        means = rows.groupby(["swap", "depth"])["wanted"].mean()  # halves differ by one prompt
        for swap, look in looks.items():
            if swap in means:
                label = swap if swap == "placebo" else f"from {swap}"
                axis.plot(means[swap].index, 100 * means[swap], label=label, **look)
        for depth in rows.loc[rows["chosen"], "depth"].unique():
            axis.axvline(depth, color="black", lw=0.8, ls="--")
        axis.set(title=_titles(found)[model], xlim=(-0.02, 1.02), ylim=(-2, 102))
        axis.set_xlabel("depth of the swap")
    for axis in axes[: forms.either(1, len(models))]:
        axis.set_ylabel("% interchanged answers")
    ncols = forms.either(3, 1)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=ncols, loc="outside upper center")
    return closed(figure)


def swaps_told(found: AcrossModels) -> Markdown:
    """Where the interchange works in each model, on prompts that the layer was not chosen on."""
    judged = found.swaps[found.swaps["half"] == "judging"]
    heads, lines = found.swapped_heads.set_index("model"), []
    for model in dict.fromkeys(found.swaps["model"]):
        told = _titles(found)[model]
        rows = judged[(judged["model"] == model) & judged["chosen"]].set_index("swap")
        if rows.empty:
            told += (
                ": nothing could be judged, for want of prompts or of a layer where another task's "
                "prompt gives the interchanged answer."
            )
        else:
            across = rows.loc["another task"]
            least, most = (f"{across[end]:.0%}" for end in ("least", "most"))
            spread = f"{least} to {most} by pair of tasks"
            told += (
                f": at depth {across['depth']:.2f}, {across['wanted']:.0%} of answers are the "
                "interchanged one when another task's prompt is put in "
                f"({spread if least != most else 'in every pair of tasks'}; "
                f"{across['prompts']} pairs of prompts)"
            )
            told += "".join(
                f", {rows.loc[swap, 'wanted']:.0%} {words}"
                for swap, words in {
                    "the same task": "from the same task",
                    "placebo": "for a move as long in a random direction",
                }.items()
                if swap in rows.index
            )
            told += "."
        lines.append(f"- {told}{_heads_told(heads.loc[model]) if model in heads.index else ''}")
    return Markdown("\n".join(lines) or "No model's interchange is told here.")


def _heads_told(own: pd.Series) -> str:
    """What swapping a model's shared heads does; a row of ``swapped_heads``."""
    told = f" Shared heads swapped between tasks ({own['heads']}): {own['wanted']:.0%}"
    if np.isnan(own["random"]):
        return f"{told}; no random heads were drawn beside them."
    told += f", as many random ones of like layers: {own['random']:.0%}."
    if not own["testable"]:
        return f"{told} Whether they move it further was not tested: too few random sets."
    return (
        f"{told} They move the answer further than these in {own['more']} of {own['pairs']} pairs "
        f"of tasks (corrected p < {LEVEL})."
    )


def carried(found: AcrossModels) -> pd.DataFrame:
    """Claims by what becomes of them: one verdict for all models, or several; a row per claim."""
    names = [name for name in found.models["name"] if name in found.claims]
    table = found.claims.set_index("claim")[names]
    one = table.nunique(axis=1) == 1
    return table.assign(alike=one)


def claims_told(found: AcrossModels) -> Markdown:
    """How many claims have one verdict in all models, and which differ."""
    table = carried(found)
    names = [c for c in table if c != "alike"]
    if len(names) < 2:
        return Markdown("Verdicts of two models are needed to say what carries over.")
    alike = table[table["alike"]]
    counted = alike[names[0]].value_counts()
    same = ", ".join(f"{n} {verdict}" for verdict, n in counted.items())
    differ = table.index[~table["alike"]].to_list()
    return Markdown(
        f"{len(alike)} of {len(table)} claims have the same verdict in every model "
        f"({same or 'none'}); the verdicts differ for {', '.join(differ) or 'none'}."
    )


@forms.two_forms
def claims_map(found: AcrossModels) -> Figure | Markdown:
    """Verdicts: a row per model, a column per claim."""
    if found.claims.empty:
        return Markdown(f"{_UNTOLD}no model's claims are judged here.")
    table = carried(found).drop(columns="alike").T
    others = [v for v in pd.unique(table.to_numpy().ravel()) if v not in VERDICTS]
    palette = [ANSWER, LAST, "#e3b94d", "#d5d5d5", *OKABE_ITO[2:]]
    verdicts = [*VERDICTS, *others]
    looks = {v: palette[i % len(palette)] for i, v in enumerate(verdicts)}
    size = 9, 0.5 * len(table) + 1.3
    figure, (axis,) = forms.subplots(size=size, phone=0.14 * table.shape[1] + 1.4)
    table = table.rename(index=_titles(found))
    table = table.T if forms.for_phone() else table  # a phone is long
    for y, (_, row) in enumerate(table.iterrows()):
        for x, verdict in enumerate(row):
            axis.add_patch(Rectangle((x, y), 0.9, 0.85, facecolor=looks[verdict]))
    axis.set(xlim=(0, table.shape[1]), ylim=(len(table), 0))
    tilt, *small = forms.either((90, 8, None), (0, None, 7))
    axis.set_xticks(
        np.arange(table.shape[1]) + 0.45, table.columns, rotation=tilt, fontsize=small[0]
    )
    axis.set_yticks(np.arange(len(table)) + 0.43, table.index, fontsize=small[1])
    axis.tick_params(length=0)
    for verdict, colour in looks.items():
        if (table == verdict).any(axis=None):
            axis.scatter([], [], marker="s", s=60, color=colour, label=verdict or "no verdict")
    sns.despine(ax=axis, left=True, bottom=True)
    figure.legend(ncols=forms.either(3, 1), loc="outside upper center", fontsize=8)
    return closed(figure)

"""How the findings on planted circuits look."""

from collections.abc import Mapping, Sequence
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from pandas.io.formats.style import Styler

from seqcirc_utils.chapters.ground_truth import PUBLISHED, GroundTruth, listed, parsed
from seqcirc_utils.components import Component
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import ANSWER, DIVERGING, NEUTRAL, closed, in_short, many
from seqcirc_utils.planted.circuits import PLANTED
from seqcirc_utils.planted.parts import Head

WRAPPED = {"white-space": "normal"}
SMALL = 0.01
"""A single ablation has an effect when it changes the logit difference by more than this share."""


def anatomy() -> Figure:
    """The plainest model, and how its parts hand on to each other."""
    path = PLANTED["path"]
    texts = {
        c: f"{part.role}\n({part.looks})" if isinstance(part, Head) else part.role
        for c, part in path.parts.items()
    }
    chain = [c for c in path.parts if c in path.circuit]
    return planted_map(path.kinds, texts, list(zip(chain, chain[1:], strict=False)))


def alone_told(found: GroundTruth) -> Markdown:
    """How exact single ablations are."""
    alone = found.alone
    kinds = {(n, str(c)): kind for n, known in PLANTED.items() for c, kind in known.kinds.items()}
    kind = pd.Series([kinds[key] for key in zip(alone["planted"], alone["component"], strict=True)])
    idle = (alone["share"][kind == "idle"] - 1).abs().max()
    chained = alone["share"][(kind == "works") & (alone["planted"] == "path")].abs().max()
    n_tasks = alone["task"].nunique()
    return Markdown(
        f"The {len(PLANTED) * n_tasks} models ({len(PLANTED)} kinds, {n_tasks} tasks) answer "
        f"{found.accuracy:.0%} of the prompts right. Mean-ablating a distractor changes the logit "
        f"difference by {idle:.1%} at most; mean-ablating any of the four parts in the figure "
        f"leaves {chained:.1%}. So the ablations are exact: corrupted prompts never show two "
        "consecutive members, hence nothing in them is ever marked."
    )


def models_table() -> Styler:
    """What was planted in each model."""
    known = PLANTED.values()
    table = {
        "model": [model.title for model in known],
        "what was planted": [model.story for model in known],
        "its parts": [listed(model.circuit) for model in known],
    }
    return common.styled(pd.DataFrame(table), "models", **WRAPPED).hide()


def search_table(found: GroundTruth) -> Styler:
    """What each search keeps of the models of the first task, and whether that is right."""
    here = _first(found)
    mark = here["right"].map({True: "✓", False: "✗"})
    texts = mark + " " + here["components"] + here["score"].map(" ({:.0%})".format)
    cells = here.assign(cell=texts).pivot(index="planted", columns="search", values="cell")
    table = cells.loc[list(PLANTED), here["search"].unique()]
    orders = found.orders.groupby("planted").agg({"components": "nunique", "right": "sum"})
    n = found.orders["order"].nunique()
    table[f"two-sided, {n} random orders"] = [
        f"{right} of {n} ✓, {many(different, 'circuit')}"
        for different, right in orders.loc[list(PLANTED)].itertuples(index=False)
    ]
    table.index = [known.title for known in PLANTED.values()]
    table.columns.name = "search"
    return common.styled(table, "searches", **WRAPPED)


def kept_panels(found: GroundTruth) -> Figure:
    """What the published sweep and the ranked search keep, model by model."""
    kept = {
        search: {PLANTED[name].title: parts for name, parts in _kept(found, search).items()}
        for search in ("published sweep", "ranked")
    }
    return search_panels({known.title: known.kinds for known in PLANTED.values()}, kept)


def searches_told(found: GroundTruth) -> Markdown:
    """How often each search is right, and what goes wrong."""
    here = _first(found)
    right = here.groupby("search")["right"].sum()
    swept = here[here["search"] == "published sweep"].set_index("planted")["right"]
    kept = found.searches.groupby(["planted", "search"])["components"].nunique()
    same = "the same circuits" if (kept == 1).all() else "but not the same circuits"
    verdicts = [f"*{PLANTED[n].title}*: {PLANTED[n].verdict}. " for n in swept.index[~swept]]
    one_sided = found.one_sided
    blame = "" if one_sided["right"] else ": the rule is to blame, not the order"
    return Markdown(
        f"Of {len(PLANTED)} models the published sweep is right about "
        f"**{right['published sweep']}**, the two-sided sweep about {right['two-sided sweep']}, "
        f"the ranked search about **{right['ranked']}** ({same} on all "
        f"{found.searches['task'].nunique()} tasks). "
        f"{''.join(verdicts) if found.threshold == PUBLISHED else ''}"
        f"With the one-sided rule the ranked search keeps {one_sided['components']} of the model "
        f"with the negative head{blame}."
    )


def joint_maps(found: GroundTruth) -> Figure:
    """What is left with two parts ablated."""
    names = found.joint["planted"].unique()
    panels = {PLANTED[name].title: _joint(found, name) for name in names}
    return joint_ablation(panels, "% of the logit difference left")


def completion_table(found: GroundTruth) -> Styler:
    """What has to be added to the ranked search's circuits, and what no ablation shows."""
    return common.styled(_completion(found), "complete", **WRAPPED).hide()


def completion_told(found: GroundTruth) -> Markdown:
    """What joint ablations show, and how far each model is known then."""
    pair, negative = _joint(found, "pair"), _joint(found, "negative")
    missing = _completion(found)["still missing"]
    unknown = missing[missing != "none"]
    unseen = PLANTED["signpost"].unseen
    if set(unknown.index) == {"signpost"}:
        exception = f"The exception is head {listed(unseen)} of the signpost: it"
    else:
        lacking = [f"{PLANTED[name].title} ({parts})" for name, parts in unknown.items()]
        exception = f"Missing: {', '.join(lacking) or 'nothing'}. Head {listed(unseen)} of the "
        exception += "signpost"
    return Markdown(
        "In the redundant pair, ablating either head alone leaves "
        f"{pair.loc['1.0', '1.0']:.0%} and {pair.loc['1.2', '1.2']:.0%}, both together "
        f"{pair.loc['1.0', '1.2']:.0%}. The negative head shows by itself: without it the model "
        f"scores {negative.loc['2.2', '2.2']:.0%}. With stand-ins and small single effects added "
        f"to what the ranked search keeps, {(missing == 'none').sum()} of {len(PLANTED)} models "
        f"are known completely. {exception} writes the same mark at the same place in every "
        "prompt, and mean ablation, which puts at each position the mean of what stands there, "
        "leaves the mark in place. Under zero ablation the ranked search "
        f"{'keeps it' if unseen <= parsed(found.zeroed) else 'loses it too'} ({found.zeroed})."
    )


def _first(found: GroundTruth) -> pd.DataFrame:
    """The searches of the first task."""
    return found.searches[found.searches["task"] == found.searches["task"].iloc[0]]


def _kept(found: GroundTruth, search: str) -> dict[str, set[Component]]:
    """What a search keeps of each model of the first task."""
    here = _first(found)
    kept = here[here["search"] == search].set_index("planted")["components"]
    return {name: parsed(text) for name, text in kept.items()}


def _joint(found: GroundTruth, name: str) -> pd.DataFrame:
    """A square table of joint ablations of one model."""
    rows = found.joint[found.joint["planted"] == name]
    order = rows["first"].unique()
    return rows.pivot(index="first", columns="second", values="share").loc[order, order]


def _completion(found: GroundTruth) -> pd.DataFrame:
    """What the ranked search keeps of each model, what other ablations add, and what is missing."""
    alone = found.alone[found.alone["task"] == found.alone["task"].iloc[0]]
    some = alone[(alone["share"] - 1).abs() > SMALL].set_index("planted")["component"]
    rows = []
    for name, circuit in _kept(found, "ranked").items():
        seconds = parsed(found.stand_ins[name])
        small = set(map(Component.parse, some[some.index == name])) - circuit - seconds
        missing = PLANTED[name].circuit - circuit - seconds - small
        row = {"model": PLANTED[name].title, "ranked search": listed(circuit)}
        row |= {"stand-ins": listed(seconds), "small effects": listed(small)}
        rows.append(row | {"still missing": listed(missing)})
    return pd.DataFrame(rows, index=list(PLANTED))


_KINDS = {"works": "#9ecae1", "against": "#f4a582", "unseen": "#fee08b", "idle": "#eeeeee"}
_KIND_LABELS = {
    "works": "works for the answer",
    "against": "works against it",
    "unseen": "works, but mean ablation cannot see it",
    "idle": "distractor",
}


_GAP = 0.25  # sets the MLP column apart


def _bare_axes(axis: Axes, n_layers: int, n_heads: int, head: str = "") -> None:
    """A map of a model without lines around it."""
    axis.set(xlim=(0, n_heads + 1.25), ylim=(0, n_layers))
    common.model_axes(axis, n_layers, n_heads, _GAP, head=head)
    axis.tick_params(length=0)
    sns.despine(ax=axis, left=True, bottom=True)


@forms.two_forms
def planted_map(
    kinds: Mapping[Component, str],
    texts: Mapping[Component, str],
    links: Sequence[tuple[Component, Component]] = (),
) -> Figure:
    """A small model drawn as a table: what each component does, and who hands on to whom.

    Args:
        kinds: Component to ``works``, ``against``, ``unseen`` or ``idle``.
        texts: What stands in each cell.
        links: Pairs (writer, reader), drawn as arrows.
    """
    n_layers, n_heads = common.shape(kinds)
    height = 1.25 * n_layers + 0.9
    figure, (axis,) = forms.subplots(size=(8.6, height), phone=height + 0.6)
    room, size = forms.either((24, 8), (12, 6.3))  # letters in a line, and their size
    for component, kind in kinds.items():
        x, y = common.corner(component, n_heads, _GAP)
        axis.add_patch(Rectangle((x + 0.05, y + 0.14), 0.9, 0.72, fc=_KINDS[kind], ec="none"))
        dim = NEUTRAL if kind == "idle" else "black"
        lines = [line for part in texts[component].split("\n") for line in wrap(part, room)]
        text = "\n".join([f"{component}", *lines])
        axis.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=size, color=dim)
    for writer, reader in links:
        (x0, y0), (x1, y1) = (common.corner(c, n_heads, _GAP) for c in (writer, reader))
        start, end = (x0 + 0.95, y0 + 0.5), (x1 + 0.05, y1 + 0.5)
        bend = "arc3,rad=0"
        if y1 > y0:
            start, end = (x0 + 0.3, y0 + 0.86), (x1 + 0.7, y1 + 0.14)
            bend = "arc3,rad=-0.1"
        arrow = {"arrowstyle": "-|>", "lw": 1.4, "color": ANSWER, "connectionstyle": bend}
        axis.annotate("", end, start, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
    _bare_axes(axis, n_layers, n_heads, head="head ")
    axis.set_ylabel("layer")
    shown = [kind for kind in _KINDS if kind in kinds.values()]
    handles = [Patch(color=_KINDS[kind], label=_KIND_LABELS[kind]) for kind in shown]
    ncols = forms.either(len(handles), 1)
    figure.legend(handles=handles, ncols=ncols, loc="outside upper center", fontsize=9)
    return closed(figure)


@forms.two_forms
def search_panels(
    models: Mapping[str, Mapping[Component, str]],
    kept: Mapping[str, Mapping[str, set[Component]]],
) -> Figure:
    """Small models side by side: what is in them, and which components each search kept.

    Args:
        models: Title to kind of every component (see :func:`planted_map`).
        kept: Search to title to the components kept; two searches can be told apart.
    """
    columns = 3
    rows = -(-len(models) // columns)
    size, phone = (8.6, 2.15 * rows + 0.9), 1.7 * rows * columns + 1.4
    figure, axes = forms.subplots(rows, columns, size=size, phone=phone)
    marks = {
        search: {"marker": marker, "color": colour, "s": 42, "lw": 1.2, "ec": "black"}
        for search, marker, colour in zip(kept, "os", ("black", "white"), strict=False)
    }
    for axis in axes[len(models) :]:
        axis.set_axis_off()
    for axis, (title, kinds) in zip(axes, models.items(), strict=False):
        n_layers, n_heads = common.shape(kinds)
        for component, kind in kinds.items():
            x, y = common.corner(component, n_heads, _GAP)
            axis.add_patch(Rectangle((x + 0.06, y + 0.1), 0.88, 0.8, fc=_KINDS[kind], ec="none"))
        for i, (search, found) in enumerate(kept.items()):
            places = [common.corner(c, n_heads, _GAP) for c in kinds if c in found[title]]
            x, y = [x + 0.3 + 0.4 * i for x, _ in places], [y + 0.5 for _, y in places]
            axis.scatter(x, y, zorder=3, **marks[search])
        axis.set_title(title)
        _bare_axes(axis, n_layers, n_heads)
    across = forms.either(columns, 1)
    for axis in axes[::across]:
        axis.set_ylabel("layer")
    for axis in axes[-across:]:
        axis.set_xlabel("head")
    used = {kind for kinds in models.values() for kind in kinds.values()}
    handles = [Patch(color=_KINDS[k], label=_KIND_LABELS[k]) for k in _KINDS if k in used]
    handles += [plt.Line2D([], [], ls="") for _ in range(len(handles) % 2)]
    handles += [
        plt.Line2D([], [], ls="", marker=m["marker"], mfc=m["color"], mec="black", label=search)
        for search, m in marks.items()
    ]
    ncols = forms.either(3, 1)
    figure.legend(handles=handles, ncols=ncols, loc="outside upper center", fontsize=9)
    return closed(figure)


@forms.two_forms
def joint_ablation(panels: Mapping[str, pd.DataFrame], label: str) -> Figure:
    """What is left when two components are ablated together (diagonal: one alone), in percent.

    Args:
        panels: Title to a square table of shares, components as index and columns.
        label: What the numbers are.
    """
    size = 2.9 * len(panels), 3.3
    figure, axes = forms.subplots(1, len(panels), size=size, phone=3.2 * len(panels))
    for axis, (title, table) in zip(axes, panels.items(), strict=True):
        values = table.to_numpy() * 100
        axis.imshow(values, cmap=DIVERGING, vmin=-80, vmax=280)  # pale: numbers stay legible
        for (row, column), value in np.ndenumerate(values):
            axis.text(
                column,
                row,
                f"{value:z.0f}",
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold" if row == column else None,
            )
        axis.set_xticks(range(len(table)), table.columns, rotation=45)
        axis.set_yticks(range(len(table)), table.index)
        axis.set_title(title)
        axis.tick_params(length=0, labelsize=8)
        sns.despine(ax=axis, left=True, bottom=True)
    figure.supxlabel(label, fontsize=9)
    return closed(figure)


def headline(found: GroundTruth) -> Markdown:
    """The chapter's finding in a sentence or two."""
    right = _first(found).groupby("search")["right"].sum()
    return in_short(
        f"Of {len(PLANTED)} known circuits the published sweep finds {right['published sweep']}, "
        f"the same sweep with a two-sided rule {right['two-sided sweep']}, and the ranked search "
        f"{right['ranked']}."
    )


def methods_table(found: GroundTruth) -> Styler:
    """AUROC of each method on each model; ✓: its best are a smallest circuit."""
    marks = found.methods["recovered"].map({True: " ✓", False: ""})
    told = found.methods["auroc"].map("{:.2f}".format) + marks
    told = told.where(found.methods["auroc"].notna(), "–")
    shown = found.methods.assign(told=told).pivot(index="method", columns="planted", values="told")
    shown = shown.loc[found.methods["method"].unique(), list(PLANTED)]
    titles = {name: known.title for name, known in PLANTED.items()}
    return common.styled(shown.rename(columns=titles).rename_axis(columns=None), "methods")


def methods_told(found: GroundTruth) -> Markdown:
    """Which methods find every circuit, and what the redundant pair and the negative head do."""
    rows = found.methods.set_index(["planted", "method"])
    whole = rows["recovered"].unstack("planted")
    every = ", ".join(whole.index[whole.all(axis=1)]) or "none"
    pair, against = (whole.index[whole[name]].tolist() for name in ("pair", "negative"))
    return Markdown(
        f"Every model's circuit comes first by {whole.all(axis=1).sum()} of {len(whole)} methods: "
        f"**{every}**. That of the redundant pair comes first by {len(pair)} "
        f"({', '.join(pair) or 'none'}): where either head suffices, replacing one of them costs "
        "nothing, and a score of single replacements is blind to both. That with the negative "
        f"head comes first by {len(against)}: the head's score is below zero, so it is ranked by "
        "its size."
    )

"""Figures of the chapter on planted circuits."""

from collections.abc import Mapping, Sequence
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from seqcirc_utils.components import Component
from seqcirc_utils.figures.style import ANSWER, DIVERGING, NEUTRAL, _close

_KINDS = {"works": "#9ecae1", "against": "#f4a582", "unseen": "#fee08b", "idle": "#eeeeee"}
_KIND_LABELS = {
    "works": "works for the answer",
    "against": "works against it",
    "unseen": "works, but mean ablation cannot see it",
    "idle": "distractor",
}


def _cell(component: Component, n_heads: int) -> tuple[float, float]:
    """Lower left corner of a component's cell in a map of the model: MLPs a little apart."""
    return (n_heads + 0.25 if component.head is None else component.head), component.layer


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
    n_heads = 1 + max(c.head for c in kinds if c.head is not None)
    n_layers = 1 + max(c.layer for c in kinds)
    figure, axis = plt.subplots(figsize=(8.6, 1.25 * n_layers + 0.9), layout="constrained")
    for component, kind in kinds.items():
        x, y = _cell(component, n_heads)
        axis.add_patch(Rectangle((x + 0.05, y + 0.14), 0.9, 0.72, fc=_KINDS[kind], ec="none"))
        dim = NEUTRAL if kind == "idle" else "black"
        lines = [line for part in texts[component].split("\n") for line in wrap(part, 24)]
        text = "\n".join([f"{component}", *lines])
        axis.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8, color=dim)
    for writer, reader in links:
        (x0, y0), (x1, y1) = _cell(writer, n_heads), _cell(reader, n_heads)
        start, end = (x0 + 0.95, y0 + 0.5), (x1 + 0.05, y1 + 0.5)
        bend = "arc3,rad=0"
        if y1 > y0:
            start, end = (x0 + 0.3, y0 + 0.86), (x1 + 0.7, y1 + 0.14)
            bend = "arc3,rad=-0.1"
        arrow = {"arrowstyle": "-|>", "lw": 1.4, "color": ANSWER, "connectionstyle": bend}
        axis.annotate("", end, start, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
    axis.set(xlim=(0, n_heads + 1.25), ylim=(0, n_layers), ylabel="layer")
    ticks = [*(h + 0.5 for h in range(n_heads)), n_heads + 0.75]
    axis.set_xticks(ticks, [*(f"head {h}" for h in range(n_heads)), "MLP"])
    axis.set_yticks(np.arange(n_layers) + 0.5, range(n_layers))
    axis.tick_params(length=0)
    sns.despine(ax=axis, left=True, bottom=True)
    shown = [kind for kind in _KINDS if kind in kinds.values()]
    handles = [Patch(color=_KINDS[kind], label=_KIND_LABELS[kind]) for kind in shown]
    figure.legend(handles=handles, ncols=len(handles), loc="outside upper center", fontsize=9)
    return _close(figure)


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
    figure, axes = plt.subplots(
        rows, columns, figsize=(8.6, 2.15 * rows + 0.9), layout="constrained", squeeze=False
    )
    marks = {
        search: {"marker": marker, "color": colour, "s": 42, "lw": 1.2, "ec": "black"}
        for search, marker, colour in zip(kept, "os", ("black", "white"), strict=False)
    }
    for axis in axes.flat[len(models) :]:
        axis.set_axis_off()
    for axis, (title, kinds) in zip(axes.flat, models.items(), strict=False):
        n_heads = 1 + max(c.head for c in kinds if c.head is not None)
        n_layers = 1 + max(c.layer for c in kinds)
        for component, kind in kinds.items():
            x, y = _cell(component, n_heads)
            axis.add_patch(Rectangle((x + 0.06, y + 0.1), 0.88, 0.8, fc=_KINDS[kind], ec="none"))
        for i, (search, found) in enumerate(kept.items()):
            places = [_cell(c, n_heads) for c in kinds if c in found[title]]
            x, y = [x + 0.3 + 0.4 * i for x, _ in places], [y + 0.5 for _, y in places]
            axis.scatter(x, y, zorder=3, **marks[search])
        axis.set(xlim=(0, n_heads + 1.25), ylim=(0, n_layers), title=title)
        ticks = [*(h + 0.5 for h in range(n_heads)), n_heads + 0.75]
        axis.set_xticks(ticks, [*range(n_heads), "MLP"])
        axis.set_yticks(np.arange(n_layers) + 0.5, range(n_layers))
        axis.tick_params(length=0)
        sns.despine(ax=axis, left=True, bottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("layer")
    for axis in axes[-1]:
        axis.set_xlabel("head")
    used = {kind for kinds in models.values() for kind in kinds.values()}
    handles = [Patch(color=_KINDS[k], label=_KIND_LABELS[k]) for k in _KINDS if k in used]
    handles += [plt.Line2D([], [], ls="") for _ in range(len(handles) % 2)]
    handles += [
        plt.Line2D([], [], ls="", marker=m["marker"], mfc=m["color"], mec="black", label=search)
        for search, m in marks.items()
    ]
    figure.legend(handles=handles, ncols=3, loc="outside upper center", fontsize=9)
    return _close(figure)


def joint_ablation(panels: Mapping[str, pd.DataFrame], label: str) -> Figure:
    """What is left when two components are ablated together (diagonal: one alone), in percent.

    Args:
        panels: Title to a square table of shares, components as index and columns.
        label: What the numbers are.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.9 * len(panels), 3.3), layout="constrained", squeeze=False
    )
    for axis, (title, table) in zip(axes[0], panels.items(), strict=True):
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
    return _close(figure)

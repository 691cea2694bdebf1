"""Figures that several chapters draw."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from textwrap import fill, wrap
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from pandas.io.formats.style import Styler

from seqcirc_utils.components import Component
from seqcirc_utils.figures import forms
from seqcirc_utils.figures.circuit_map import ink
from seqcirc_utils.figures.style import ANSWER, DIVERGING, NEUTRAL, closed, task_colours
from seqcirc_utils.prompts.sequences import TASKS

_ROW = 14  # letters of a row's name that have room on a phone


def absent(found: Any, *sections: str) -> Markdown | None:
    """Why sections of a chapter's findings are missing; nothing where all are there."""
    reasons = dict.fromkeys(found.missing[name] for name in sections if name in found.missing)
    return Markdown(f"Not here: {' '.join(reasons)}") if reasons else None


def needs(*sections: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Show, in place of what needs sections of the findings, why they are missing."""

    def decorate(show: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(show)
        def shown(found: Any, *args: Any, **named: Any) -> Any:
            return absent(found, *sections) or show(found, *args, **named)

        return shown

    return decorate


def styled(table: pd.DataFrame, name: str, **look: str) -> Styler:
    """A table of texts, with a name that keeps its HTML the same from run to run."""
    style = table.style.set_uuid(name).set_table_attributes('class="dataframe"')
    style = style.format(escape="html").format_index(escape="html")  # an edge ends in <q>
    return style.set_properties(**{"text-align": "left"} | look)


def titled(text: str) -> str:
    """Text whose tasks have their names in the book instead of those of the parameters."""
    for name, task in TASKS.items():
        text = text.replace(name, task.title.lower()) if "_" in name else text
    return text


def page_table(frame: pd.DataFrame) -> HTML:
    """A table of sentences, or of HTML: they wrap, and in the book each row is a card."""
    cell = "10rem" if frame.shape[1] < 5 else "15rem"  # the least width of a card's cells
    body = "".join(f"<tr>{_cells(row, frame.columns)}</tr>" for row in frame.to_numpy())
    return HTML(
        '<div style="overflow-x:auto">'
        f'<table class="dataframe cards" style="min-width:40em;font-size:85%;--cell:{cell}">'
        f"<thead><tr>{_cells(frame.columns)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(values: Iterable[str | HTML], columns: Iterable[str] = ()) -> str:
    """A row: the head without ``columns``; else each cell but the first tells what it is of."""
    style = "text-align:left;vertical-align:top;padding:.3em .6em;white-space:pre-line"
    texts = [str(v.data) if isinstance(v, HTML) else escape(v) for v in values]
    if not (names := list(columns)):
        return "".join(f'<th style="{style}">{text}</th>' for text in texts)
    labels = ["", *(f' data-of="{escape(name)}"' for name in names[1:])]
    pairs = zip(labels, texts, strict=True)
    return "".join(f'<td style="{style}"{label}>{text}</td>' for label, text in pairs)


def spread(frame: pd.DataFrame, mean: str, low: str = "low", high: str = "high") -> np.ndarray:
    """How far the bounds of intervals are below and above their means ``[2, row]``."""
    return np.abs(frame[[low, high]].to_numpy().T - frame[mean].to_numpy())


def shape(names: Iterable[Component]) -> tuple[int, int]:
    """Layers, and heads in a layer, of the model that has these components."""
    names = list(names)
    return 1 + max(c.layer for c in names), 1 + max(c.head for c in names if c.head is not None)


def corner(component: Component, n_heads: int, gap: float) -> tuple[float, int]:
    """Lower left corner of a component's cell in a map of the model, its MLPs ``gap`` apart."""
    return (n_heads + gap if component.head is None else component.head), component.layer


def model_axes(
    axis: Axes, n_layers: int, n_heads: int, gap: float, step: int = 1, head: str = ""
) -> None:
    """Label a map of the model: each ``step``-th layer, heads (behind the word ``head``), MLPs."""
    axis.set_xticks(
        [*(h + 0.5 for h in range(n_heads)), n_heads + gap + 0.5],
        [*(f"{head}{h}" for h in range(n_heads)), "MLP"],
    )
    axis.set_yticks(np.arange(0, n_layers, step) + 0.5, range(0, n_layers, step))


def component_grid(frame: pd.DataFrame, column: str) -> np.ndarray:
    """A table of components as a grid ``[layer, head …, MLP]``."""
    heads = int(frame["head"].max()) + 1
    grid = np.full((int(frame["layer"].max()) + 1, heads + 1), np.nan)
    place = frame["head"].fillna(heads).astype(int)
    grid[frame["layer"].to_numpy(), place.to_numpy()] = frame[column].to_numpy()
    return grid


@forms.two_forms
def component_heatmaps(
    panels: Mapping[str, np.ndarray], label: str, percent: bool = False
) -> Figure:
    """Heat maps over all components, heads and MLP apart; colours are cut at the extremes.

    Args:
        panels: Title to grid (see :func:`component_grid`).
        label: Colour bar label, with the unit.
        percent: Show values as percentages.
    """
    size = 4.3 * len(panels) + 0.8, 5.6
    figure, axes = forms.subplots(1, len(panels), size=size, phone=4.4 * len(panels))
    for axis, (title, grid) in zip(axes, panels.items(), strict=True):
        heads = grid.shape[1] - 1
        shown = np.insert(grid * (100 if percent else 1), heads, np.nan, axis=1)
        limit = max(np.nanquantile(np.abs(shown), 0.985), 1e-9)
        image = axis.imshow(
            shown, origin="lower", aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit
        )
        axis.set_title(title)
        step = max(1, heads // 12)
        ticks = [*range(0, heads, step), heads + 1]
        axis.set_xticks(ticks, [*map(str, range(0, heads, step)), "MLP"])
        axis.set(xlabel="head", ylabel="layer")
        bar = figure.colorbar(image, ax=axis, shrink=0.8, extend="both")
        bar.set_label(label)
    return closed(figure)


@forms.two_forms
def component_bars(frame: pd.DataFrame, n: int, label: str, percent: bool = False) -> Figure:
    """The ``n`` components of largest absolute effect, with 95% intervals over prompts.

    Args:
        frame: Columns ``component``, ``effect``, ``low``, ``high``.
        n: How many.
        label: Axis label, with the unit.
        percent: Show as percentages.
    """
    scale = 100 if percent else 1
    top = frame.sort_values("effect", key=abs, ascending=False).head(n)[::-1]
    size = 7, 0.24 * len(top) + 1
    figure, (axis,) = forms.subplots(size=size, phone=0.18 * len(top) + 1)
    mean, error = scale * top["effect"].to_numpy(), scale * spread(top, "effect")
    mlp = top["component"].str.startswith("mlp").to_numpy()
    axis.barh(top["component"], mean, color=np.where(mlp, "#E69F00", "#0072B2"))
    axis.errorbar(mean, range(len(top)), xerr=error, fmt="none", ecolor="black", lw=1)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(xlabel=label, ylim=(-0.7, len(top) - 0.3))
    handles = [Patch(color="#0072B2", label="head"), Patch(color="#E69F00", label="MLP")]
    figure.legend(handles=handles, ncols=2, loc="outside upper center", fontsize=8)
    return closed(figure)


@forms.two_forms
def agreement(
    x: Sequence[float], y: Sequence[float], names: Sequence[str], labels: tuple
) -> Figure:
    """Scatter of two measures of the same things, with the line of equality.

    The eight largest are named, unless the name would lie on another's.

    Args:
        x: First measure.
        y: Second measure.
        names: What each point is.
        labels: The two axis labels.
    """
    first, second = np.asarray(x), np.asarray(y)
    figure, (axis,) = forms.subplots(size=(5, 4.2), phone=3.2)
    axis.scatter(first, second, s=14, color=ANSWER, alpha=0.6, lw=0)
    ends = [min(first.min(), second.min()), max(first.max(), second.max())]
    axis.plot(ends, ends, color=NEUTRAL, lw=0.8, ls="--", label="equal")
    named: list[tuple[float, float]] = []
    near = 0.045 * (ends[1] - ends[0])  # less than a line's height apart, two names would overlap
    for i in np.argsort(-(np.abs(first) + np.abs(second)))[:8]:
        at = first[i], second[i]
        if any(abs(y - at[1]) < near and abs(x - at[0]) < 7 * near for x, y in named):
            continue
        named.append(at)
        axis.annotate(names[i], at, fontsize=8, xytext=(4, 2), textcoords="offset points")
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.legend(loc="lower right")
    return closed(figure)


def heatmap(
    axis: Axes,
    table: pd.DataFrame,
    texts: pd.DataFrame | np.ndarray,
    limit: float,
    diverging: bool = True,
    fontsize: float = 8,
    **bar: Any,
) -> None:
    """Draw a labelled table as colours up to ``limit`` with a text in each cell.

    Args:
        axis: Where.
        table: Values; index and columns are the labels (their names the axis labels).
        texts: What stands in the cells.
        limit: Colour limit.
        diverging: Centre the colours at zero.
        fontsize: Of the texts.
        bar: How the colour bar looks.
    """
    if forms.for_phone():
        bar |= {"location": "bottom", "aspect": 30}
    sns.heatmap(
        table,
        annot=np.asarray(texts),
        fmt="",
        annot_kws={"fontsize": fontsize},
        cmap=DIVERGING if diverging else "viridis",
        vmin=-limit if diverging else 0,
        vmax=limit,
        cbar_kws=bar,
        linewidths=0.5,
        ax=axis,
    )
    axis.tick_params(axis="y", rotation=0)
    axis.tick_params(axis="x", rotation=30)
    if forms.for_phone():
        names = [label.get_text().replace("\n", " ") for label in axis.get_xticklabels()]
        look = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(axis.get_xticks(), names, **look)
        names = [fill(label.get_text(), _ROW) for label in axis.get_yticklabels()]
        axis.set_yticks(axis.get_yticks(), names)


_PAGE = 8.2
"""Inches up to which a figure's smallest letters can be read on a page."""


@forms.two_forms
def table_heatmap(
    table: pd.DataFrame, label: str, format: str = ".2f", diverging: bool = True, limit: float = 0
) -> Figure:
    """A table as one :func:`heatmap` with its numbers; without a limit, up to their largest."""
    if forms.for_phone() and table.shape[1] > max(8, table.shape[0]):
        table = table.T  # a phone is long
    limit = limit or max(float(np.nanmax(np.abs(table.to_numpy(float)))), 1e-9)
    width = min(1.0 * table.shape[1] + 3, _PAGE)
    size = (width, max(0.34 * table.shape[0] + 1.6, 2.6))
    row = 0.1 + 0.13 * max(len(wrap(str(name), _ROW)) for name in table.index)
    figure, (axis,) = forms.subplots(size=size, phone=row * table.shape[0] + 2)
    texts = table.map(lambda v: f"{v:z{format}}")
    heatmap(axis, table, texts, limit, diverging, label=label)
    if not forms.for_phone() and width - 3 < 0.6 * table.shape[1]:  # too close to lean
        axis.tick_params(axis="x", rotation=90)
    return closed(figure)


@forms.two_forms
def circuit_map(
    circuits: Mapping[str, set[Component]],
    n_layers: int,
    n_heads: int,
    *,
    roles: Mapping[str, Mapping[Component, str]] | None = None,
    role_letters: Mapping[str, str] | None = None,
) -> Figure:
    """All circuits in one map of the model: a cell per component, a stripe per task.

    Components that every circuit holds are framed. With ``roles`` (task to component to role) each
    stripe carries its role's letter of ``role_letters``.
    """
    roles, role_letters = roles or {}, role_letters or {}
    seen: set[str] = set()
    colours = task_colours(list(circuits))
    gap = 0.6  # sets the MLP column apart
    size = 0.55 * n_heads + 2.5, 0.22 * n_layers + 1.8
    figure, (axis,) = forms.subplots(
        size=size, phone=0.18 * n_layers + 2, width=max(forms.PHONE, 0.3 * n_heads + 0.8)
    )
    per_line, large = forms.either((4, 7.5), (2, 6.5))
    shared = set.intersection(*circuits.values()) if len(circuits) > 1 else set()
    width = 0.9 / max(len(circuits), 1)
    for component in (Component(i, h) for i in range(n_layers) for h in [*range(n_heads), None]):
        x, y = corner(component, n_heads, gap)
        axis.add_patch(Rectangle((x + 0.05, y + 0.08), 0.9, 0.84, fc="#eeeeee", ec="none"))
        for i, (task, circuit) in enumerate(circuits.items()):
            if component not in circuit:
                continue
            left = x + 0.05 + i * width
            axis.add_patch(Rectangle((left, y + 0.08), width, 0.84, fc=colours[task], ec="none"))
            role = roles.get(task, {}).get(component, "")
            if role in role_letters:
                seen.add(role)
                look = {"fontsize": large, "fontweight": "bold", "color": ink(colours[task])}
                place = left + width / 2, y + 0.47
                axis.text(*place, role_letters[role], ha="center", va="center", **look)
        if component in shared:
            frame = Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, fc="none", ec="black", lw=1.4)
            axis.add_patch(frame)
    axis.set(xlim=(-0.2, n_heads + gap + 1.2), ylim=(-0.2, n_layers + 0.2))
    axis.set(xlabel="head", ylabel="layer")
    model_axes(axis, n_layers, n_heads, gap, step=2)
    handles = [Patch(color=colours[t], label=TASKS[t].title if t in TASKS else t) for t in circuits]
    if len(circuits) > 1:
        handles.append(Patch(fc="none", ec="black", label="in all circuits"))
    axis.legend(handles=handles, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.02))
    if seen:
        named = [f"{letter} {role}" for role, letter in role_letters.items() if role in seen]
        lines = ["   ".join(named[i : i + per_line]) for i in range(0, len(named), per_line)]
        where = {"transform": axis.transAxes, "ha": "center", "va": "top"}
        axis.text(0.5, -0.6 / n_layers - 0.06, "\n".join(lines), fontsize=large + 1.5, **where)
    return closed(figure)

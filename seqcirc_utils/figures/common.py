"""Figures that several chapters draw."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from seqcirc_utils.components import Component
from seqcirc_utils.figures.circuit_map import ink
from seqcirc_utils.figures.style import ANSWER, DIVERGING, NEUTRAL, closed, task_colours
from seqcirc_utils.prompts.sequences import TASKS


def component_grid(frame: pd.DataFrame, column: str) -> np.ndarray:
    """A table of components as a grid ``[layer, head …, MLP]``."""
    heads = int(frame["head"].max()) + 1
    grid = np.full((int(frame["layer"].max()) + 1, heads + 1), np.nan)
    place = frame["head"].fillna(heads).astype(int)
    grid[frame["layer"].to_numpy(), place.to_numpy()] = frame[column].to_numpy()
    return grid


def component_heatmaps(
    panels: Mapping[str, np.ndarray], label: str, percent: bool = False
) -> Figure:
    """Heat maps over all components, heads and MLP apart; colours are cut at the extremes.

    Args:
        panels: Title to grid (see :func:`component_grid`).
        label: Colour bar label, with the unit.
        percent: Show values as percentages.
    """
    width = 4.3 * len(panels) + 0.8
    figure, axes = plt.subplots(
        1, len(panels), figsize=(width, 5.6), layout="constrained", squeeze=False
    )
    for axis, (title, grid) in zip(axes[0], panels.items(), strict=True):
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


def component_bars(frame: pd.DataFrame, n: int, label: str, percent: bool = False) -> Figure:
    """The ``n`` components of largest absolute effect, with 95% intervals over prompts.

    Args:
        frame: Columns ``component``, ``effect``, ``low``, ``high``.
        n: How many.
        label: Axis label, with the unit.
        percent: Show as percentages.
    """
    scale = 100 if percent else 1
    top = frame.reindex(frame["effect"].abs().sort_values(ascending=False).index).head(n)[::-1]
    figure, axis = plt.subplots(figsize=(7, 0.24 * len(top) + 1), layout="constrained")
    mean = scale * top["effect"].to_numpy()
    spread = np.abs(scale * top[["low", "high"]].T.to_numpy() - mean)
    mlp = top["component"].str.startswith("mlp").to_numpy()
    axis.barh(top["component"], mean, color=np.where(mlp, "#E69F00", "#0072B2"))
    axis.errorbar(mean, range(len(top)), xerr=spread, fmt="none", ecolor="black", lw=1)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(xlabel=label, ylim=(-0.7, len(top) - 0.3))
    handles = [Patch(color="#0072B2", label="head"), Patch(color="#E69F00", label="MLP")]
    figure.legend(handles=handles, ncols=2, loc="outside upper center", fontsize=8)
    return closed(figure)


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
    figure, axis = plt.subplots(figsize=(5, 4.2), layout="constrained")
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


def table_heatmap(
    table: pd.DataFrame, label: str, format: str = ".2f", diverging: bool = True, limit: float = 0
) -> Figure:
    """A labelled table as a heat map, with its numbers.

    Args:
        table: Values; index and columns are the labels (their names the axis labels).
        label: Colour bar label.
        format: Number format.
        diverging: Centre the colours at zero.
        limit: Colour limit; the largest absolute value when 0.
    """
    limit = limit or max(float(np.nanmax(np.abs(table.to_numpy(float)))), 1e-9)
    size = (1.0 * table.shape[1] + 3, max(0.34 * table.shape[0] + 1.6, 2.6))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    texts = table.map(lambda v: f"{v:z{format}}")
    sns.heatmap(
        table,
        annot=texts.to_numpy(),
        fmt="",
        annot_kws={"fontsize": 8},
        cmap=DIVERGING if diverging else "viridis",
        vmin=-limit if diverging else 0,
        vmax=limit,
        cbar_kws={"label": label},
        linewidths=0.5,
        ax=axis,
    )
    axis.tick_params(axis="y", rotation=0)
    axis.tick_params(axis="x", rotation=30)
    return closed(figure)


def circuit_map(
    circuits: Mapping[str, set[Component]],
    n_layers: int,
    n_heads: int,
    title: str = "",
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
    figure, axis = plt.subplots(
        figsize=(0.55 * n_heads + 2.5, 0.22 * n_layers + 1.8), layout="constrained"
    )
    shared = set.intersection(*circuits.values()) if len(circuits) > 1 else set()
    for layer in range(n_layers):
        for head in [*range(n_heads), None]:
            component = Component(layer, head)
            x = n_heads + gap if head is None else head
            axis.add_patch(Rectangle((x + 0.05, layer + 0.08), 0.9, 0.84, fc="#eeeeee", ec="none"))
            width = 0.9 / max(len(circuits), 1)
            for i, (task, circuit) in enumerate(circuits.items()):
                if component in circuit:
                    corner = (x + 0.05 + i * width, layer + 0.08)
                    axis.add_patch(Rectangle(corner, width, 0.84, fc=colours[task], ec="none"))
                    role = roles.get(task, {}).get(component, "")
                    if role in role_letters:
                        seen.add(role)
                        axis.text(
                            corner[0] + width / 2,
                            layer + 0.47,
                            role_letters[role],
                            ha="center",
                            va="center",
                            fontsize=7.5,
                            fontweight="bold",
                            color=ink(colours[task]),
                        )
            if component in shared:
                frame = Rectangle(
                    (x + 0.02, layer + 0.04), 0.96, 0.92, fc="none", ec="black", lw=1.4
                )
                axis.add_patch(frame)
    axis.set(xlim=(-0.2, n_heads + gap + 1.2), ylim=(-0.2, n_layers + 0.2))
    axis.set(xlabel="head", ylabel="layer", title=title)
    axis.set_xticks(
        [*(h + 0.5 for h in range(n_heads)), n_heads + gap + 0.5], [*range(n_heads), "MLP"]
    )
    axis.set_yticks(np.arange(0, n_layers, 2) + 0.5, range(0, n_layers, 2))
    handles = [Patch(color=colours[t], label=TASKS[t].title if t in TASKS else t) for t in circuits]
    if len(circuits) > 1:
        handles.append(Patch(fc="none", ec="black", label="in all circuits"))
    axis.legend(handles=handles, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.02))
    if seen:
        named = [f"{letter} {role}" for role, letter in role_letters.items() if role in seen]
        lines = ["   ".join(named[i : i + 4]) for i in range(0, len(named), 4)]
        axis.text(
            0.5,
            -0.6 / n_layers - 0.06,
            "\n".join(lines),
            transform=axis.transAxes,
            ha="center",
            va="top",
            fontsize=9,
        )
    return closed(figure)

"""Figures: one visual language for the whole book, colour-blind safe, drawn as vectors.

Every function takes results (tables, arrays), never a model, and returns the matplotlib figure.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib_inline.backend_inline import set_matplotlib_formats

from seqcirc_utils.ablation import Component
from seqcirc_utils.store import writing
from seqcirc_utils.tasks import TASKS

# Okabe and Ito's palette: told apart with any colour vision.
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
ANSWER, LAST, NEUTRAL = "#0072B2", "#D55E00", "#777777"
DIVERGING = "RdBu"  # red: lowers the score; blue: raises it


def use_style() -> None:
    """Set the book's look; call once per notebook."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.9)
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "savefig.bbox": "tight",
            "svg.hashsalt": "seqcirc",  # the same figure gives the same bytes
            "svg.fonttype": "path",
        }
    )
    set_matplotlib_formats("svg", metadata={"Date": None})


def task_colours(tasks: Sequence[str]) -> dict[str, str]:
    """One colour per task, the same in every figure."""
    order = [*TASKS, *(t for t in tasks if t not in TASKS)]
    return {task: _OKABE_ITO[order.index(task) % len(_OKABE_ITO)] for task in tasks}


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure to a file, whole or not at all; the suffix says the format."""
    with writing(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
    return Path(path)


def _close(figure: Figure) -> Figure:
    plt.close(figure)  # the cell's value shows it; otherwise Jupyter would show it twice
    return figure


def token_strip(tokens: Sequence[str], groups: Mapping[str, Sequence[bool]]) -> Figure:
    """One prompt, token by token, coloured by position group."""
    palette = [*sns.color_palette("crest", len(groups) - 3), "#E69F00", "#D55E00", "#dddddd"]
    colours = dict(zip(groups, palette, strict=True))
    figure, axis = plt.subplots(figsize=(9, 1.9))
    for i, token in enumerate(tokens):
        group = next(name for name, mask in groups.items() if mask[i])
        axis.add_patch(Rectangle((i, 0), 1, 1, facecolor=colours[group], edgecolor="white"))
        dark = sum(plt.matplotlib.colors.to_rgb(colours[group])) < 1.5
        axis.text(
            i + 0.5,
            0.5,
            token.replace(" ", "␣"),
            rotation=90,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
            family="DejaVu Sans Mono",
        )
    axis.set(xlim=(0, len(tokens)), ylim=(0, 1), yticks=[], xlabel="token position")
    axis.set_xticks(np.arange(len(tokens)) + 0.5, range(len(tokens)), fontsize=7)
    sns.despine(ax=axis, left=True)
    handles = [Patch(color=colours[name], label=name) for name in groups]
    axis.legend(
        handles=handles, ncols=len(groups), loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8
    )
    return _close(figure)


def accuracy_panels(table: pd.DataFrame, by: str, label: str) -> Figure:
    """Accuracy and logit difference, with 95% intervals, against one property of the prompts.

    Args:
        table: Columns ``by``, ``accuracy``, ``accuracy_low``, ``accuracy_high``, ``logit_diff``,
            ``logit_diff_low``, ``logit_diff_high``, ``n``.
        by: Column on the horizontal axis.
        label: Its axis label.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    x = np.arange(len(table))
    for axis, name, title in zip(
        axes,
        ("accuracy", "logit_diff"),
        ("accuracy (top token is the answer)", "logit difference"),
        strict=True,
    ):
        spread = np.abs(
            table[[f"{name}_low", f"{name}_high"]].T.to_numpy() - table[name].to_numpy()
        )
        axis.errorbar(x, table[name], yerr=spread, fmt="o", color=ANSWER, capsize=3)
        axis.set_xticks(x, table[by], rotation=30 if table[by].dtype.kind not in "if" else 0)
        axis.set(xlabel=label, ylabel=title, xlim=(-0.5, len(table) - 0.5))
    axes[0].set_ylim(-0.03, 1.03)
    axes[1].axhline(0, color=NEUTRAL, lw=0.8)
    return _close(figure)


def lens_trajectory(curves: Mapping[str, np.ndarray]) -> Figure:
    """Mean lens probability at the end, by layer: one line per label, ``[layer + 1, n]`` each."""
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    colours = {"next member (answer)": ANSWER, "last member": LAST}
    for label, values in curves.items():
        x = np.arange(len(values))
        mean = values.mean(1)
        error = 1.96 * values.std(1, ddof=1) / np.sqrt(values.shape[1]) if len(values[0]) > 1 else 0
        colour = colours.get(label, NEUTRAL)
        style = "-" if label in colours else "--"
        axis.plot(x, mean, style, label=label, color=colour)
        axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
    axis.set(xlabel="after block (0: embedding)", ylabel="probability at the end", ylim=(0, None))
    axis.legend()
    return _close(figure)


def lens_heatmaps(maps: Mapping[str, np.ndarray], columns: Sequence[str]) -> Figure:
    """Mean lens probability by layer and position; a panel per label ``[layer + 1, position]``."""
    figure, axes = plt.subplots(
        1, len(maps), figsize=(3.1 * len(maps) + 1, 4.6), sharey=True, layout="constrained"
    )
    for axis, (label, values) in zip(np.atleast_1d(axes), maps.items(), strict=True):
        image = axis.imshow(
            values, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis", rasterized=False
        )
        axis.set_title(label)
        axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
        axis.set_xlabel("position")
    np.atleast_1d(axes)[0].set_ylabel("after block (0: embedding)")
    figure.colorbar(image, ax=axes, label="probability", shrink=0.8)
    return _close(figure)


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
    return _close(figure)


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
    axis.legend(handles=[Patch(color="#0072B2", label="head"), Patch(color="#E69F00", label="MLP")])
    return _close(figure)


def agreement(
    x: Sequence[float], y: Sequence[float], names: Sequence[str], labels: tuple
) -> Figure:
    """Scatter of two measures of the same things, with the line of equality.

    Args:
        x: First measure.
        y: Second measure.
        names: What each point is.
        labels: The two axis labels.
    """
    x, y = np.asarray(x), np.asarray(y)
    figure, axis = plt.subplots(figsize=(5, 4.2), layout="constrained")
    axis.scatter(x, y, s=14, color=ANSWER, alpha=0.6, lw=0)
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axis.plot(ends, ends, color=NEUTRAL, lw=0.8, ls="--", label="equal")
    for i in np.argsort(-(np.abs(x) + np.abs(y)))[:8]:
        axis.annotate(names[i], (x[i], y[i]), fontsize=8, xytext=(4, 2), textcoords="offset points")
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.legend(loc="lower right")
    return _close(figure)


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
    size = (1.0 * table.shape[1] + 3, 0.34 * table.shape[0] + 1.6)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    sns.heatmap(
        table,
        annot=True,
        fmt=format,
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
    return _close(figure)


def size_curve(
    tried: Mapping[int, float], threshold: float, chosen: int, random_scores: Sequence[float]
) -> Figure:
    """Faithfulness against circuit size, beside random circuits of the chosen size."""
    sizes = sorted(tried)
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    axis.plot(sizes, [tried[s] for s in sizes], "o-", color=ANSWER, label="top-ranked components")
    axis.axhline(threshold, color=NEUTRAL, ls="--", lw=0.8, label=f"threshold {threshold:.0%}")
    axis.scatter(
        [chosen] * len(random_scores),
        random_scores,
        marker="x",
        color=LAST,
        s=18,
        label="random circuits of that size",
    )
    axis.axvline(chosen, color=ANSWER, lw=0.6, ls=":")
    axis.set(xlabel="components kept", ylabel="faithfulness (1 = whole model)")
    axis.legend()
    return _close(figure)


def circuit_map(
    circuits: Mapping[str, set[Component]], n_layers: int, n_heads: int, title: str = ""
) -> Figure:
    """All circuits in one map of the model: a cell per component, a stripe per task.

    Components that every circuit holds are framed.
    """
    colours = task_colours(list(circuits))
    gap = 0.6  # sets the MLP column apart
    figure, axis = plt.subplots(
        figsize=(0.55 * n_heads + 2.5, 0.21 * n_layers + 1.4), layout="constrained"
    )
    shared = set.intersection(*circuits.values())
    for layer in range(n_layers):
        for head in [*range(n_heads), None]:
            component = Component(layer, head)
            x = n_heads + gap if head is None else head
            axis.add_patch(Rectangle((x + 0.05, layer + 0.08), 0.9, 0.84, fc="#eeeeee", ec="none"))
            width = 0.9 / len(circuits)
            for i, (task, circuit) in enumerate(circuits.items()):
                if component in circuit:
                    corner = (x + 0.05 + i * width, layer + 0.08)
                    axis.add_patch(Rectangle(corner, width, 0.84, fc=colours[task], ec="none"))
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
    handles.append(Patch(fc="none", ec="black", label="in all circuits"))
    axis.legend(handles=handles, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.02))
    return _close(figure)

"""Figures: one visual language for the whole book, colour-blind safe, drawn as vectors.

Every function takes results (tables, arrays), never a model, and returns the matplotlib figure.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib_inline.backend_inline import set_matplotlib_formats

from seqcirc_utils.ablation import Component
from seqcirc_utils.interactive import ink
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
    handles = [Patch(color="#0072B2", label="head"), Patch(color="#E69F00", label="MLP")]
    figure.legend(handles=handles, ncols=2, loc="outside upper center", fontsize=8)
    return _close(figure)


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
    return _close(figure)


def search_paths(searches: Mapping[str, pd.DataFrame], n_components: int) -> Figure:
    """How searches shrink a circuit: components left and score kept, trial by trial.

    Args:
        searches: Label to the trials (columns ``size``, ``score``, ``removed``).
        n_components: How many components the model has.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for (label, trials), colour in zip(searches.items(), _OKABE_ITO, strict=False):
        left = n_components - (trials["size"] * trials["removed"]).cumsum()
        score = 100 * trials["score"].where(trials["removed"]).ffill().fillna(1)
        axes[0].plot(np.arange(1, len(trials) + 1), left, color=colour, label=label)
        axes[1].plot(left, score, color=colour)
    axes[0].set(xlabel="trials (circuits evaluated)", ylabel="components left", ylim=(0, None))
    axes[0].legend()
    axes[1].set(xlabel="components left", ylabel="logit difference kept (%)")
    axes[1].invert_xaxis()
    return _close(figure)


def size_curve(
    curve: pd.DataFrame,
    threshold: float,
    found: Mapping[str, tuple[int, float]],
    random: Mapping[str, Sequence[float]],
    size: int,
) -> Figure:
    """Faithfulness against circuit size, with the circuits found and random ones of one size.

    Args:
        curve: Columns ``size``, ``faithfulness``.
        threshold: Share aimed at.
        found: Label to size and faithfulness of a circuit.
        random: Label to the scores of random circuits.
        size: Size of the random circuits.
    """
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    axis.plot(curve["size"], curve["faithfulness"], ".-", color=ANSWER, label="by ranking")
    axis.axhline(threshold, color=NEUTRAL, ls="--", lw=0.8, label=f"threshold {threshold:.0%}")
    axis.axhline(1, color=NEUTRAL, lw=0.5)
    for (label, (x, y)), marker in zip(found.items(), "osD^", strict=False):
        axis.plot(x, y, marker, color="black", ms=7, mfc="none", mew=1.5, label=label)
    kinds = zip(random.items(), ((LAST, "x"), ("#009E73", "+")), strict=False)
    for i, ((label, scores), (colour, marker)) in enumerate(kinds, 1):
        x = size + i * 0.025 * curve["size"].max()
        axis.plot([x] * len(scores), scores, marker, color=colour, ms=4, alpha=0.7, label=label)
    axis.set(xlabel="components kept", ylabel="faithfulness (1 = whole model)")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _close(figure)


def needed_and_found(table: pd.DataFrame) -> Figure:
    """What each component of a circuit contributes, and how often it is found again.

    Args:
        table: Columns ``component``, ``change`` (share of the logit difference), ``q``; and the
            share of repeated searches that found it, by kind: ``prompts``, ``seed``, ``order``.
    """
    table = table[::-1]
    y = np.arange(len(table))
    figure, axes = plt.subplots(
        1, 2, figsize=(7.5, 0.2 * len(table) + 1.3), sharey=True, width_ratios=[3, 1]
    )
    mlp = table["component"].str.startswith("mlp").to_numpy()
    colours = np.where(mlp, "#E69F00", "#0072B2")
    sure = table["q"].to_numpy() < 0.05
    bars = axes[0].barh(y, 100 * table["change"], color=np.where(sure, colours, "white"))
    for bar, colour in zip(bars, colours, strict=True):
        bar.set_edgecolor(colour)
    axes[0].set_yticks(y, table["component"], fontsize=8)
    axes[0].axvline(0, color="black", lw=0.8)
    axes[0].set(xlabel="change when removed (points)", ylim=(-0.7, len(table) - 0.3))
    handles = [Patch(color="#0072B2", label="head"), Patch(color="#E69F00", label="MLP")]
    handles.append(Patch(fc="white", ec=NEUTRAL, label="not significant (q ≥ 0.05)"))
    for kind, label, marker, shift in (
        ("prompts", "found with resampled prompts", "o", 0.25),
        ("seed", "found with another seed", "^", 0),
        ("order", "found in another order", "s", -0.25),
    ):
        style = {"marker": marker, "color": "black", "ms": 3.5, "ls": "", "label": label}
        style |= {"mfc": "white"} if kind == "order" else {}
        handles += axes[1].plot(table[kind], y + shift, **style)
    axes[1].set(xlabel="found again (share)", xlim=(-0.08, 1.08))
    axes[1].grid(axis="y", lw=0.3)
    figure.legend(handles=handles, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8)
    figure.tight_layout()
    return _close(figure)


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
    return _close(figure)


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


# What writes a member is orange or pink, what moves one blue, what looks at one green.
_ROLE_COLOURS = {
    "next member": "#D55E00",
    "copy": "#E69F00",
    "inhibition": "#CC79A7",
    "transport to the end": "#0072B2",
    "duplicate token": "#56B4E9",
    "member detection": "#009E73",
    "promotes next member": "#D55E00",
    "copies last member": "#E69F00",
}


def role_colours(roles: Sequence[str]) -> dict[str, str]:
    """One colour per role, the same in every figure; roles without one are grey."""
    return {role: _ROLE_COLOURS.get(role, "#dddddd") for role in roles}


def role_map(frame: pd.DataFrame) -> Figure:
    """Role of every component as the colour of its cell; the circuit's components are framed.

    Args:
        frame: Columns ``layer``, ``head`` (missing for MLPs), ``role``, ``in_circuit``.
    """
    n_layers, n_heads = int(frame["layer"].max()) + 1, int(frame["head"].max()) + 1
    figure, axis = plt.subplots(
        figsize=(min(0.6 * n_heads + 3.4, 9), 0.2 * n_layers + 1.2), layout="constrained"
    )
    colours = role_colours(frame["role"])
    for row in frame.itertuples():
        x = n_heads + 0.6 if pd.isna(row.head) else row.head
        corner = (x + 0.06, row.layer + 0.1)
        axis.add_patch(Rectangle(corner, 0.88, 0.8, fc=colours[row.role], ec="none"))
        if row.in_circuit:
            axis.add_patch(Rectangle(corner, 0.88, 0.8, fc="none", ec="black", lw=1.2))
    axis.set(xlim=(-0.2, n_heads + 1.8), ylim=(-0.2, n_layers + 0.2))
    axis.set(xlabel="head", ylabel="layer")
    axis.set_xticks([*(h + 0.5 for h in range(n_heads)), n_heads + 1.1], [*range(n_heads), "MLP"])
    step = 2 if n_layers > 8 else 1
    axis.set_yticks(np.arange(0, n_layers, step) + 0.5, range(0, n_layers, step))
    shown = [role for role in _ROLE_COLOURS if role in colours]
    handles = [Patch(color=colours[role], label=role) for role in shown]
    handles += [Patch(color="#dddddd", label="none"), Patch(fc="none", ec="black", label="circuit")]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return _close(figure)


def ov_scatter(panels: Mapping[str, pd.DataFrame], threshold: float) -> Figure:
    """OV copy score against next score of every head; the best are named.

    Args:
        panels: Title to a table with ``component``, ``copy``, ``next`` (shares) and ``in_circuit``.
        threshold: Drawn as lines in both directions.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.1 * len(panels) + 0.3, 3.9), layout="constrained", squeeze=False
    )
    for axis, (title, frame) in zip(axes[0], panels.items(), strict=True):
        colour = np.where(frame["in_circuit"], ANSWER, "#bbbbbb")
        axis.scatter(100 * frame["copy"], 100 * frame["next"], s=18, c=colour, lw=0, alpha=0.8)
        for mark in (axis.axhline, axis.axvline):
            mark(100 * threshold, color=NEUTRAL, lw=0.8, ls="--")
        best = frame[frame[["copy", "next"]].max(axis=1) >= threshold]
        # Heads that share a place share a label.
        for _, near in best.groupby([best["copy"].round(1), best["next"].round(1)]):
            names = [*near["component"][:3], *(["…"] if len(near) > 3 else [])]
            x, y = near["copy"].mean(), near["next"].mean()
            axis.annotate(
                ", ".join(names),
                (100 * x, 100 * y),
                fontsize=7.5,
                xytext=(0, 6),
                textcoords="offset points",
                rotation=60 if y < threshold else 0,  # many copy and few write the next: a crowd
                ha="right" if x > 0.7 and y >= threshold else "left",
            )
        axis.set(xlim=(-4, 106), ylim=(-4, 112), title=title, xlabel="copy score (% of members)")
    axes[0, 0].set_ylabel("next score (% of members)")
    handles = [
        Patch(color=ANSWER, label="head in the circuit"),
        Patch(color="#bbbbbb", label="head outside"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=8)
    return _close(figure)


def lens_steps(frame: pd.DataFrame) -> Figure:
    """Change of the lens probability across each attention layer and each MLP.

    Args:
        frame: Columns ``part`` (``attention``, ``mlp``), ``layer``, ``next``, ``last`` and their
            ``…_low`` and ``…_high``.
    """
    figure, axes = plt.subplots(2, 1, figsize=(7.5, 4.6), sharex=True, layout="constrained")
    for axis, (part, rows) in zip(axes, frame.groupby("part", sort=True), strict=True):
        for name, colour, shift in (("next", ANSWER, -0.2), ("last", LAST, 0.2)):
            x, mean = rows["layer"] + shift, 100 * rows[name]
            spread = np.abs(100 * rows[[f"{name}_low", f"{name}_high"]].T.to_numpy() - [mean, mean])
            label = {"next": "next member (answer)", "last": "last member"}[name]
            axis.bar(x, mean, width=0.4, color=colour, label=label)
            axis.errorbar(x, mean, yerr=spread, fmt="none", ecolor="black", elinewidth=0.7)
        axis.axhline(0, color=NEUTRAL, lw=0.8)
        axis.set_title({"attention": "across the attention layer", "mlp": "across the MLP"}[part])
        axis.set_ylabel("change (points)")
    axes[0].legend(loc="upper left", fontsize=8)
    axes[1].set_xlabel("layer")
    return _close(figure)


def attention_patterns(
    patterns: Mapping[str, np.ndarray], tokens: Sequence[str], rows: Sequence[int]
) -> Figure:
    """Attention of a few heads on one prompt, from chosen tokens (rows) to all (columns).

    Args:
        patterns: Title to ``[query, key]``.
        tokens: The prompt's tokens; those of ``rows`` are printed bold below, too.
        rows: Positions of the queries that are shown.
    """
    words = [token.replace(" ", "␣").replace("<|endoftext|>", "<start>") for token in tokens]
    height = (0.19 * len(rows) + 0.35) * len(patterns) + 1.1
    figure, axes = plt.subplots(
        len(patterns),
        1,
        figsize=(8.2, height),
        sharex=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, (title, pattern) in zip(axes[:, 0], patterns.items(), strict=True):
        shown = np.asarray(pattern)[list(rows)]
        future = np.arange(len(tokens)) > np.asarray(rows)[:, None]
        image = axis.imshow(
            np.ma.masked_array(100 * shown, future), cmap="Blues", vmin=0, vmax=100, aspect="auto"
        )
        axis.set_facecolor("#f3f3f3")
        axis.set_yticks(range(len(rows)), [f"{words[r]} ({r})" for r in rows], fontsize=7)
        for (y, x), value in np.ndenumerate(shown):
            if value >= 0.2 and not future[y, x]:
                colour = "white" if value > 0.6 else "black"
                text = f"{100 * value:.0f}"
                axis.text(x, y, text, ha="center", va="center", fontsize=6, color=colour)
        axis.set_title(title, fontsize=9)
        axis.tick_params(length=0)
    axes[-1, 0].set_xticks(range(len(tokens)), words, rotation=90, fontsize=7)
    for position, label in enumerate(axes[-1, 0].get_xticklabels()):
        label.set_fontweight("bold" if position in rows else "normal")
    figure.supylabel("from", fontsize=9)
    axes[-1, 0].set_xlabel("to")
    figure.colorbar(image, ax=axes, label="attention (%)", shrink=0.6, aspect=30)
    return _close(figure)


def prediction_bars(table: pd.DataFrame) -> Figure:
    """Agreement of circuits with the whole model, a panel per task, beside random circuits.

    Args:
        table: Columns ``task``, ``measure`` (``member``, ``vocabulary``), ``subset``,
            ``agreement``, ``low``, ``high``, ``random_mean``, ``n``.
    """
    tasks, subsets = list(table["task"].unique()), ["all", "right", "wrong"]
    measures = {"member": "among members", "vocabulary": "among all tokens"}
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(9, 3.4), sharey=True, layout="constrained", squeeze=False
    )
    colours = dict(zip(measures, (_OKABE_ITO[0], _OKABE_ITO[5]), strict=True))
    for axis, task in zip(axes[0], tasks, strict=True):
        for i, measure in enumerate(measures):
            rows = table[(table["task"] == task) & (table["measure"] == measure)]
            rows = rows.set_index("subset").loc[subsets]
            x = np.arange(len(subsets)) + 0.4 * i - 0.2
            shown = rows["n"].to_numpy() > 0
            mean, rows = rows["agreement"].to_numpy()[shown], rows[shown]
            axis.bar(x[shown], mean, 0.36, color=colours[measure])
            spread = np.abs(rows[["low", "high"]].to_numpy().T - mean)
            axis.errorbar(x[shown], mean, spread, fmt="none", ecolor="black", lw=1, capsize=2)
            axis.scatter(x[shown], rows["random_mean"], marker="x", color=LAST, s=28, zorder=3)
        counts = table[(table["task"] == task) & (table["measure"] == "vocabulary")]
        counts = counts.set_index("subset")["n"]
        axis.set_xticks(range(len(subsets)), [f"{s}\n(n = {counts[s]})" for s in subsets])
        axis.set_title(TASKS[task].title if task in TASKS else task)
        axis.set(ylim=(0, 1.02))
    axes[0][0].set_ylabel("says what the model says (share)")
    figure.supxlabel("prompts, by whether the whole model's top token is the answer", fontsize=10)
    handles = [Patch(color=colours[m], label=f"circuit, {label}") for m, label in measures.items()]
    handles.append(plt.Line2D([], [], marker="x", ls="", color=LAST, label="random circuits, mean"))
    figure.legend(handles=handles, ncols=3, loc="outside upper center", frameon=False)
    return _close(figure)


def prediction_scatter(points: pd.DataFrame) -> Figure:
    """Logit differences of the circuit against the whole model's, a panel per task.

    Args:
        points: Columns ``task``, ``whole``, ``circuit`` (logits), ``right`` (of the whole model).
    """
    tasks = list(points["task"].unique())
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(9, 3.4), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        rows = points[points["task"] == task]
        ends = [rows[["whole", "circuit"]].min().min(), rows[["whole", "circuit"]].max().max()]
        axis.plot(ends, ends, color=NEUTRAL, lw=0.8, ls="--", label="equal")
        for right, colour, marker in ((True, ANSWER, "o"), (False, LAST, "^")):
            part = rows[rows["right"] == right]
            label = f"the model is {'right' if right else 'wrong'}"
            axis.scatter(
                part["whole"], part["circuit"], s=18, color=colour, marker=marker, alpha=0.7,
                lw=0, label=label,
            )  # fmt: skip
        axis.set_title(TASKS[task].title if task in TASKS else task)
        axis.set_xlabel("whole model (logits)")
    axes[0][0].set_ylabel("circuit alone (logits)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc="outside upper center", frameon=False)
    return _close(figure)


def edit_responses(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """What scaling one component does to every task: a row per part, a column per edited task.

    Args:
        table: Columns ``part``, ``component``, ``factor``, ``edited_task``, ``target``,
            ``score_before``, ``change``, ``low``, ``high``.
        titles: Target to its label; targets without one are left out.
    """
    parts = list(table["part"].unique())
    tasks = [t for t in titles if t in set(table["edited_task"])]
    colours = task_colours([t for t in titles if t in TASKS])
    others = iter(((NEUTRAL, "--"), (NEUTRAL, ":"), ("#000000", "-.")))
    looks = {t: (colours[t], "-") if t in colours else next(others) for t in titles}
    figure, axes = plt.subplots(
        len(parts), len(tasks), figsize=(9, 2.2 * len(parts) + 0.9), sharex=True, sharey="row",
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for row, part in zip(axes, parts, strict=True):
        for axis, task in zip(row, tasks, strict=True):
            edits = table[(table["part"] == part) & (table["edited_task"] == task)]
            axis.axhline(100, color="#cccccc", lw=0.8, zorder=0)
            axis.axhline(0, color="#cccccc", lw=0.8, zorder=0)
            if edits.empty:
                axis.set_title("none")
                continue
            for target, title in titles.items():
                one = edits[edits["target"] == target].sort_values("factor")
                if one.empty:
                    continue
                share = one[["change", "low", "high"]].div(one["score_before"], axis=0) * 100 + 100
                share["factor"] = one["factor"]
                share.loc[-1] = {"change": 100, "low": 100, "high": 100, "factor": 1}
                share = share.sort_values("factor")
                colour, style = looks[target]
                wide = 2.4 if target == task else 1.2
                axis.fill_between(
                    share["factor"], share["low"], share["high"], color=colour, alpha=0.12, lw=0
                )
                axis.plot(
                    share["factor"], share["change"], style, marker="o", ms=3, lw=wide,
                    color=colour, label=title,
                )  # fmt: skip
            name = edits["component"].iloc[0]
            axis.set_title(f"{titles[task]}: {part} {name.removeprefix('mlp')}", fontsize=9)
            axis.set_xticks([0, *sorted({1.0, *edits["factor"]} - {0})])
            axis.xaxis.set_major_formatter("{x:g}")
        row[0].set_ylabel("% of unedited")
    figure.supxlabel("factor on what the component writes (0 removes it, 1 leaves it)", fontsize=10)
    handles = [
        plt.Line2D([], [], color=looks[t][0], ls=looks[t][1], label=title)
        for t, title in titles.items()
    ]
    figure.legend(handles=handles, ncols=len(titles), loc="outside upper center", frameon=False)
    return _close(figure)


def selectivity_scatter(table: pd.DataFrame) -> Figure:
    """Cost of ablating a circuit's head: to its own task, and to the others.

    Args:
        table: Columns ``component``, ``group`` (``shared head``, ``own head``, ``some``), ``own``
            and ``others`` (shares of the logit difference).
    """
    looks = {
        "shared head": (ANSWER, "o", "in every circuit"),
        "some": (NEUTRAL, "s", "in some circuits"),
        "own head": (LAST, "^", "in this circuit only"),
    }
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    ends = [0, 100 * max(table["own"].max(), table["others"].max())]
    axis.plot(ends, ends, color=NEUTRAL, lw=0.8, ls="--", label="as much to the others")
    axis.axhline(0, color="#cccccc", lw=0.8)
    for name, (colour, marker, label) in looks.items():
        rows = table[table["group"] == name]
        axis.scatter(
            100 * rows["own"], 100 * rows["others"], s=24, color=colour, marker=marker, alpha=0.75,
            lw=0, label=label,
        )  # fmt: skip
    for _, row in table.nlargest(4, "own").drop_duplicates("component").head(2).iterrows():
        axis.annotate(
            f"{row['component']} ({TASKS[row['task']].title.lower()})",
            (100 * row["own"], 100 * row["others"]),
            xytext=(-6, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    axis.set(
        xlabel="cost to the circuit's task (% of its logit difference)",
        ylabel="mean cost to the other tasks (%)",
    )
    axis.legend(loc="upper left")
    return _close(figure)


def transfer_heatmaps(
    table: pd.DataFrame, sets: Mapping[str, str], tasks: Mapping[str, str], n_own: int
) -> Figure:
    """Sets of components (rows) on tasks (columns), a panel per mode, with intervals.

    Args:
        table: Columns ``mode``, ``set``, ``task``, ``mean``, ``low``, ``high`` (shares of the
            whole model), as :func:`seqcirc_utils.comparison.transfer` makes it.
        sets: Rows in order, name to label.
        tasks: Columns in order, name to label.
        n_own: How many of the columns are sequence tasks; a line sets the controls apart.
    """
    found = table.set_index(["mode", "set", "task"]) * 100
    titles = {
        "kept": "kept alone, all else ablated",
        "ablated": "ablated, all else intact",
        "heads": "its heads alone ablated",
    }
    modes = {mode: title for mode, title in titles.items() if mode in set(table["mode"])}
    figure, axes = plt.subplots(
        len(modes),
        1,
        figsize=(1.15 * len(tasks) + 2.4, (0.42 * len(sets) + 0.4) * len(modes) + 0.8),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    axes = axes[:, 0]
    for axis, (mode, title) in zip(axes, modes.items(), strict=True):
        cells = [[found.loc[(mode, s, t)] for t in tasks] for s in sets]
        words = [
            [f"{c['mean']:z.0f}\n[{c['low']:z.0f}, {c['high']:z.0f}]" for c in r] for r in cells
        ]
        sns.heatmap(
            pd.DataFrame([[c["mean"] for c in r] for r in cells], [*sets.values()]),
            annot=np.array(words),
            fmt="",
            annot_kws={"fontsize": 7.5},
            cmap=DIVERGING,
            vmin=-150,
            vmax=150,
            cbar_kws={"label": "%", "extend": "both"},
            linewidths=0.5,
            ax=axis,
        )
        axis.set_title(title)
        axis.set_xticks(np.arange(len(tasks)) + 0.5, [*tasks.values()], rotation=20, ha="right")
        axis.tick_params(axis="y", rotation=0)
        axis.tick_params(axis="both", length=0)
        if 0 < n_own < len(tasks):
            axis.axvline(n_own, color="black", lw=2)
    return _close(figure)


def random_panels(
    draws: pd.DataFrame,
    own: pd.DataFrame,
    circuits: Mapping[str, str],
    tasks: Mapping[str, str],
    kinds: Mapping[str, str],
) -> Figure:
    """Each circuit beside random ones, on each task; kept alone above, heads ablated below.

    Args:
        draws: Columns ``mode``, ``circuit``, ``kind``, ``task``, ``mean`` (shares).
        own: Columns ``mode``, ``circuit``, ``task``, ``value``.
        circuits: Panels in order, name to label.
        tasks: Horizontal axis in order, name to label.
        kinds: Kinds of random circuit, name to label.
    """
    figure, axes = plt.subplots(
        2,
        len(circuits),
        figsize=(2.6 * len(circuits) + 1.2, 5.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    colours = task_colours(list(circuits))
    looks = dict(zip(kinds, (("x", -0.17), ("+", 0.17)), strict=False))

    def by_panel(frame: pd.DataFrame, mode: str, circuit: str) -> pd.DataFrame:
        return frame[(frame["mode"] == mode) & (frame["circuit"] == circuit)]

    for row, mode in zip(axes, ("kept", "heads"), strict=True):
        for axis, circuit in zip(row, circuits, strict=True):
            here, value = by_panel(draws, mode, circuit), by_panel(own, mode, circuit)
            value = value.drop_duplicates("task").set_index("task")["value"] * 100
            for i, task in enumerate(tasks):
                for kind, (marker, shift) in looks.items():
                    y = 100 * here.loc[(here["kind"] == kind) & (here["task"] == task), "mean"]
                    x = np.full(len(y), i + shift)
                    axis.scatter(x, y, marker=marker, s=22, color=NEUTRAL, lw=1)
            axis.scatter(
                range(len(tasks)),
                value.reindex(list(tasks)),
                marker="D",
                s=30,
                color=colours[circuit],
            )
            axis.axhline(0, color=NEUTRAL, lw=0.8)
            axis.axhline(100, color=NEUTRAL, lw=0.8, ls="--")
            axis.set_title(
                f"{circuits[circuit]}: {'kept alone' if mode == 'kept' else 'heads ablated'}"
            )
            axis.set_xticks(range(len(tasks)), [*tasks.values()], rotation=40, ha="right")
            axis.set_xlim(-0.5, len(tasks) - 0.5)
        row[0].set_ylabel("% of the whole model")
    dots = [("D", "the circuit", "black")]
    dots += [(looks[k][0], label, NEUTRAL) for k, label in kinds.items()]
    handles = [
        plt.Line2D([], [], marker=m, ls="", color=c, label=label, markersize=6)
        for m, label, c in dots
    ]
    figure.legend(handles=handles, ncols=3, loc="outside upper center", fontsize=9)
    return _close(figure)


def probe_accuracy(table: pd.DataFrame) -> Figure:
    """The model's own accuracy on each probe with exact 95% intervals, by group of probes.

    Args:
        table: Columns ``title``, ``group``, ``accuracy``, ``low``, ``high``, ``chance``, ``used``,
            ``reason``; a probe that the tokenizer cannot hold has no accuracy (NaN).
    """
    table = table.reset_index(drop=True)
    # A gap before each new group; the first group stands on top.
    y = -(np.arange(len(table)) + (table["group"] != table["group"].shift()).cumsum()).to_numpy()
    figure, axis = plt.subplots(figsize=(7, 0.22 * -y[-1] + 1.1), layout="constrained")
    for used, colour, label in (
        (True, ANSWER, "can do it: ablated below"),
        (False, LAST, "cannot do it"),
    ):
        rows = ((table["used"] == used) & table["accuracy"].notna()).to_numpy()
        part = table[rows]
        spread = np.abs(part[["low", "high"]].T.to_numpy() - part["accuracy"].to_numpy())
        axis.errorbar(
            part["accuracy"],
            y[rows],
            xerr=spread,
            fmt="o" if used else "s",
            ms=5,
            lw=1.2,
            color=colour,
            label=label,
        )
    axis.scatter(table["chance"], y, marker="|", s=60, color="black", label="guessing", zorder=3)
    for row in np.flatnonzero(table["accuracy"].isna()):
        axis.text(0.5, y[row], "not in the tokenizer's words", va="center", fontsize=8)
    for group, rows in table.groupby("group", sort=False).indices.items():
        axis.text(1.03, y[rows].mean(), group, va="center", fontsize=9, color=NEUTRAL)
    axis.set_yticks(y, table["title"], fontsize=9)
    axis.set(xlabel="accuracy (the whole answer is right)", xlim=(-0.02, 1.02))
    axis.set_ylim(y[-1] - 0.7, -0.3)
    axis.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    return _close(figure)


def ablation_against_random(table: pd.DataFrame, level: float = 0.05) -> Figure:
    """Accuracy lost by ablating each set of heads, beyond what matched random sets lose.

    Each cell gives the accuracy after the ablation and, in brackets, the mean after ablating
    random sets; its colour is the difference in percentage points; a star marks q below ``level``.

    Args:
        table: Rows of one kind of ablation: ``probe``, ``set``, ``n_heads``, ``accuracy_after``,
            ``random_mean``, ``q``; where nothing random was drawn, the colour is the accuracy lost.
        level: Of the corrected p-value.
    """
    sets = {s: f"{s}\n({n})" for s, n in zip(table["set"], table["n_heads"], strict=True)}
    probes = list(dict.fromkeys(table["probe"]))
    random = table["random_mean"].fillna(table["accuracy_before"])
    cells = table.assign(beyond=100 * (table["accuracy_after"] - random))
    grid = cells.pivot(index="probe", columns="set", values="beyond").reindex(probes)[[*sets]]
    figure, axis = plt.subplots(
        figsize=(0.62 * len(sets) + 2.2, 0.4 * len(probes) + 1.5), layout="constrained"
    )
    image = axis.imshow(grid, cmap=DIVERGING, vmin=-100, vmax=100, aspect="auto")
    for row in cells.itertuples():
        text = f"{row.accuracy_after:.2f}{'*' if row.q < level else ''}"
        text += "" if np.isnan(row.random_mean) else f"\n({row.random_mean:.2f})"
        place = [*sets].index(row.set), probes.index(row.probe)
        colour = "white" if abs(row.beyond) > 65 else "black"
        axis.text(*place, text, ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(sets)), sets.values(), fontsize=8, rotation=40, ha="right")
    axis.set_yticks(range(len(probes)), [p.replace("_", " ") for p in probes], fontsize=8)
    axis.set(xlabel="heads ablated (how many)")
    bar = figure.colorbar(image, ax=axis, shrink=0.7, format="%+d pts")
    lost = table["random_mean"].isna().all()
    bar.set_label("change of accuracy" if lost else "accuracy, minus random's", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return _close(figure)


def verdict_map(table: pd.DataFrame, verdicts: Sequence[str]) -> Figure:
    """Every claim as a square, by topic, with its verdict as colour and mark.

    Args:
        table: Columns ``claim``, ``topic``, ``verdict``.
        verdicts: The verdicts: supported, not supported, not tested.
    """
    looks = dict(zip(verdicts, ((ANSWER, "✓"), (LAST, "✗"), ("#d5d5d5", "–")), strict=True))
    topics = list(dict.fromkeys(table["topic"]))
    figure, axis = plt.subplots(figsize=(7, 0.52 * len(topics) + 0.7), layout="constrained")
    for y, topic in enumerate(topics):
        rows = table[table["topic"] == topic]
        for x, (claim, verdict) in enumerate(zip(rows["claim"], rows["verdict"], strict=True)):
            colour, mark = looks[verdict]
            axis.add_patch(Rectangle((x, y), 0.92, 0.86, facecolor=colour, edgecolor="none"))
            shade = "black" if verdict == verdicts[-1] else "white"
            axis.text(x + 0.46, y + 0.43, f"{claim} {mark}", ha="center", va="center", color=shade)
    widest = table.groupby("topic").size().max()
    axis.set(xlim=(0, widest), ylim=(len(topics), 0), xticks=[])
    axis.set_yticks(np.arange(len(topics)) + 0.43, topics)
    axis.tick_params(axis="y", length=0)
    sns.despine(ax=axis, left=True, bottom=True)
    counts = table["verdict"].value_counts()
    handles = [
        Patch(color=colour, label=f"{mark} {verdict} ({counts.get(verdict, 0)})")
        for verdict, (colour, mark) in looks.items()
    ]
    figure.legend(handles=handles, ncols=3, loc="outside upper center")
    return _close(figure)

"""Figures of the chapter on what the tasks share."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from seqcirc_utils.figures.style import DIVERGING, NEUTRAL, _close, task_colours


def transfer_heatmaps(
    table: pd.DataFrame, sets: Mapping[str, str], tasks: Mapping[str, str], n_own: int
) -> Figure:
    """Sets of components (rows) on tasks (columns), a panel per mode, with intervals.

    Args:
        table: Columns ``mode``, ``set``, ``task``, ``mean``, ``low``, ``high`` (shares of the
            whole model), as :func:`seqcirc_utils.analyses.transfer.transfer` makes it.
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

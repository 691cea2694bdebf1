"""Figures of the chapter beyond the tasks."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from seqcirc_utils.figures.style import ANSWER, DIVERGING, LAST, NEUTRAL, _close


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

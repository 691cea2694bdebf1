"""Figures of the chapter on the tasks."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from seqcirc_utils.figures.style import ANSWER, NEUTRAL, _close


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

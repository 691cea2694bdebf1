"""Figures of the chapter on finding circuits."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seqcirc_utils.figures.style import _OKABE_ITO, ANSWER, LAST, NEUTRAL, _close


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

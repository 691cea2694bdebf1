"""Figures of the chapter on the claims."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from seqcirc_utils.figures.style import ANSWER, LAST, _close


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

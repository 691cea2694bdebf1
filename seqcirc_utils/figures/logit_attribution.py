"""Figures of the chapter on where the answer is written."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from seqcirc_utils.figures.style import ANSWER, LAST, NEUTRAL, _close


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

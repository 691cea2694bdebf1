"""Figures of the chapter on roles."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from seqcirc_utils.figures.style import ANSWER, LAST, NEUTRAL, _close

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

"""How the findings on lens and direct attribution look."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from seqcirc_utils.chapters.logit_attribution import LogitAttribution
from seqcirc_utils.figures import common, forms
from seqcirc_utils.figures.style import ANSWER, LAST, NEUTRAL, closed, in_short
from seqcirc_utils.statistics import short

NEXT_MEMBER, LAST_MEMBER = "next member (answer)", "last member"
VISIBLE = 0.1
"""The answer counts as visible to the lens from this probability on."""


def _curves(found: LogitAttribution) -> dict[str, np.ndarray]:
    """Lens probabilities at the end ``[block + 1, n]`` of the answer, the last member, others."""
    n = np.arange(len(found.answer))
    answer, last = (found.lens_end[:, n, found.answer - back] for back in (0, 1))
    others = found.lens_end.sum(-1) - answer - last
    return {NEXT_MEMBER: answer, LAST_MEMBER: last, "all other members together": others}


def _overtakes(found: LogitAttribution) -> int | None:
    """After which block the answer is ahead of the last member for good; ``None``: never."""
    curves = _curves(found)
    behind = np.flatnonzero(curves[NEXT_MEMBER].mean(1) <= curves[LAST_MEMBER].mean(1))
    after = behind[-1] + 1 if len(behind) else 0
    return int(after) if after < len(found.lens_end) else None


@common.needs("lens")
def lens_curves(found: LogitAttribution) -> Figure:
    """What the lens reads at the end, block by block."""
    return lens_trajectory(_curves(found))


@common.needs("lens")
def lens_told(found: LogitAttribution) -> Markdown:
    """When the next member overtakes the last one."""
    answer, last = (_curves(found)[name].mean(1) for name in (NEXT_MEMBER, LAST_MEMBER))
    after, n_layers = _overtakes(found), len(found.lens_end) - 1
    seen = np.flatnonzero(answer > VISIBLE)
    return Markdown(
        (
            f"On average the next member is ahead of the last one for good after block "
            f"**{after}** of {n_layers}, and "
            if after is not None
            else f"On average the next member is **not** ahead of the last one after the last of "
            f"{n_layers} blocks, and "
        )
        + (
            f"first holds more than a tenth of the probability after block {seen[0]}. "
            if len(seen)
            else "nowhere holds more than a tenth of the probability. "
        )
        + f"The last member's own mean probability peaks after block {last.argmax()}, at "
        f"{last.max():.3f}."
    )


@common.needs("lens")
def lens_maps(found: LogitAttribution) -> Figure:
    """What the lens reads where the members stand."""
    maps = {
        "the member there (end: last member)": found.lens_shown,
        "its successor (end: answer)": found.lens_next,
    }
    shown = found.lens_shown.shape[1] - 1
    return lens_heatmaps(maps, [*(f"member {i + 1}" for i in range(shown)), "end"])


def _parts(found: LogitAttribution) -> pd.DataFrame:
    """The contributions of heads and MLPs."""
    return found.contributions.dropna(subset="layer").astype({"layer": int})


@common.needs("direct")
def direct_map(found: LogitAttribution) -> Figure:
    """The direct contribution of every component."""
    grid = common.component_grid(_parts(found), "effect")
    return common.component_heatmaps({"direct contribution": grid}, "logits")


@common.needs("direct")
def direct_bars(found: LogitAttribution) -> Figure:
    """The largest direct contributions, with intervals."""
    label = "direct contribution to the logit difference (logits)"
    return common.component_bars(_parts(found), 15, label)


@common.needs("direct")
def direct_told(found: LogitAttribution) -> Markdown:
    """What MLPs and heads write, which head writes most, and which opposes most."""
    effects, of_head = _parts(found).set_index("component")["effect"], _parts(found)["head"].notna()
    heads, mlps = effects[of_head.to_numpy()], effects[~of_head.to_numpy()]
    return Markdown(
        f"The parts add up to the measured logit difference "
        f"({found.direct.sum(0).mean():.2f} against {found.logit_diff:.2f}; largest relative error "
        f"{short(found.error or 0.0, 1)}). All MLPs together write {mlps.sum():.2f} of it, all "
        f"heads {heads.sum():.2f}. The head that writes most is **{heads.idxmax()}** "
        f"({heads.max():+.2f}); the one that opposes most is {heads.idxmin()} ({heads.min():+.2f})."
    )


def numbers(found: LogitAttribution) -> dict[str, str]:
    """Numbers that other pages may quote."""
    told = {}
    if "lens" not in found.missing:
        after = _overtakes(found)
        told["lens-overtakes"] = "never" if after is None else str(after)
    if "direct" not in found.missing:
        effects = _parts(found).dropna().set_index("component")["effect"]
        told["top-direct-head"] = effects.idxmax()
    return told


@forms.two_forms
def lens_trajectory(curves: Mapping[str, np.ndarray]) -> Figure:
    """Mean lens probability at the end, by layer: one line per label, ``[layer + 1, n]`` each."""
    figure, (axis,) = forms.subplots(size=(7, 3.4), phone=2.8)
    colours = {NEXT_MEMBER: ANSWER, LAST_MEMBER: LAST}
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
    return closed(figure)


@forms.two_forms
def lens_heatmaps(maps: Mapping[str, np.ndarray], columns: Sequence[str]) -> Figure:
    """Mean lens probability by layer and position; a panel per label ``[layer + 1, position]``."""
    size = 3.1 * len(maps) + 1, 4.6
    figure, axes = forms.subplots(1, len(maps), size=size, phone=3.6 * len(maps), sharey=True)
    for axis, (label, values) in zip(axes, maps.items(), strict=True):
        image = axis.imshow(
            values, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis", rasterized=False
        )
        axis.set_title(label)
        axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
        axis.set_xlabel("position")
    for axis in axes[: forms.either(1, len(axes))]:
        axis.set_ylabel("after block (0: embedding)")
    figure.colorbar(image, ax=axes, label="probability", shrink=0.8)
    return closed(figure)


def headline(found: LogitAttribution) -> Markdown:
    """The chapter's finding in a sentence or two."""
    said = []
    if "lens" not in found.missing:
        after, blocks = _overtakes(found), len(found.lens_end) - 1
        said.append(
            "Read early, the stream never prefers the answer to the last member for good."
            if after is None
            else f"After block {after} of {blocks} the answer leads the last member for good."
        )
    if "direct" not in found.missing:
        mlps = _parts(found)["head"].isna()
        effects = _parts(found)["effect"]
        said.append(
            f"Of a lead of {found.logit_diff:.1f} logits, MLPs write {effects[mlps].sum():.1f} "
            f"directly and heads {effects[~mlps].sum():.1f}."
        )
    return in_short(" ".join(said) or f"Nothing can be told: {' '.join(found.missing.values())}")

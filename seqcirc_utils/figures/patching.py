"""How the findings on ablation and patching look."""

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from seqcirc_utils.ablation.screening import MATTERS
from seqcirc_utils.chapters.patching import Patching
from seqcirc_utils.figures import common
from seqcirc_utils.figures.style import in_short

HARM = 0.02
"""A head counts as harmful whose ablation raises the logit difference by more than this share."""


def effect_maps(found: Patching) -> Figure:
    """Mean ablation and activation patching of every component, side by side."""
    panels = {"mean ablation": "ablation", "activation patching": "patching"}
    grids = {title: common.component_grid(found.effects, name) for title, name in panels.items()}
    return common.component_heatmaps(grids, "% of the logit difference", percent=True)


def strongest_bars(found: Patching, n: int = 20) -> Figure:
    """The components whose ablation changes most, with intervals."""
    names = {"ablation": "effect", "ablation_low": "low", "ablation_high": "high"}
    frame = found.effects.rename(columns=names)
    return common.component_bars(
        frame, n, "change in logit difference (% of the whole model)", True
    )


def top_heads(found: Patching, n: int = 3) -> list[str]:
    """The heads whose ablation costs most."""
    heads = found.effects[found.effects["head"].notna()]
    return heads.nsmallest(n, "ablation")["component"].tolist()


def effects_told(found: Patching) -> Markdown:
    """Which components matter most, how many do harm, and how far the two measures agree."""
    effects = found.effects.set_index("component")["ablation"]
    heads = effects[found.effects["head"].notna().to_numpy()]
    mlps = effects[found.effects["head"].isna().to_numpy()]
    listed, listed_mlps = (
        ", ".join(f"{name} ({effect:+.0%})" for name, effect in part.nsmallest(3).items())
        for part in (heads, mlps)
    )
    ablated, every = found.effects["n_ablated"], found.ablation.shape[1]
    fewer = ablated < every
    estimated = (
        f" {fewer.sum()} of the {len(fewer)} components were ablated on {ablated.min()} of "
        f"{every} prompts: by the gradient on all prompts, corrected on these, none of them moves "
        f"the score by more than {MATTERS:.0%}. The others were ablated on all."
    )
    clear, clearer = (
        (found.effects[f"{of}_low"] > 0) | (found.effects[f"{of}_high"] < 0)
        for of in ("ablation", "by_start")
    )
    agree = spearmanr(-found.effects["ablation"], found.effects["patching"]).statistic
    return Markdown(
        f"The heads that matter most are {listed}; the MLPs, {listed_mlps}. The average head "
        f"matters little: {heads.clip(upper=0).mean():+.1%} (gains counted as zero). The logit "
        f"difference *rises* by more than {HARM:.0%} when any one of {(heads > HARM).sum()} heads "
        "is ablated. Over all components, the rank correlation (Spearman) of the cost of ablation "
        f"and the recovery by patching is {agree:.2f}. {clear.sum()} effects of ablation are clear "
        f"of zero where prompts count as drawn; of these {(clear & clearer).sum()} where starts do "
        "(Student's t)." + (estimated if fewer.any() else "")
    )


def position_map(found: Patching) -> Figure:
    """Exact recovery of the strongest components by group of positions."""
    return common.table_heatmap(100 * found.exact.set_index("component"), "% recovered", ".0f")


def estimate_scatter(found: Patching) -> Figure:
    """Exact against estimated recovery of the strongest components, by group of positions."""
    exact = found.exact.set_index("component")
    guess = found.positions.set_index("component").loc[exact.index, exact.columns]
    labels = [f"{component}, {group}" for component in exact.index for group in exact.columns]
    axes = ("exact recovery", "estimate by attribution patching")
    return common.agreement(exact.to_numpy().ravel(), guess.to_numpy().ravel(), labels, axes)


def estimate_told(found: Patching) -> Markdown:
    """How good the estimate is."""
    pairs = found.exact.shape[0] * (found.exact.shape[1] - 1)
    return Markdown(
        f"Over {pairs} component-and-group pairs the estimate agrees with the exact value with "
        f"Spearman **{found.position_spearman:.2f}**. First-order estimates are least reliable for "
        "the earliest MLPs, whose outputs everything later reads."
    )


def layer_map(found: Patching) -> Figure:
    """Estimated recovery summed over the components of each layer, by group of positions."""
    by_layer = found.positions.drop(columns="component").groupby(found.effects["layer"]).sum() * 100
    return common.table_heatmap(by_layer[::-1], "% recovered (estimate)", ".0f")


@common.needs("paths")
def path_map(found: Patching, n: int = 15) -> Figure:
    """Recovery by one path: senders against the inputs of the strongest paths' receivers."""
    paths = found.paths.assign(into=found.paths["receiver"] + " " + found.paths["input"])
    strongest = paths["effect"].abs().nlargest(n).index
    shown = paths[paths["into"].isin(paths.loc[strongest, "into"])]
    grid: pd.DataFrame = shown.pivot(index="sender", columns="into", values="effect") * 100
    order = [sender for sender in paths["sender"].unique() if sender in grid.index]
    return common.table_heatmap(grid.loc[order], "% recovered", ".1f")


def headline(found: Patching) -> Markdown:
    """The chapter's finding in a sentence or two."""
    effects = found.effects.set_index("component")["ablation"]
    strong = effects[effects < -0.1]
    worst = ", ".join(f"{name} ({effect:+.0%})" for name, effect in strong.nsmallest(3).items())
    if strong.empty:
        return in_short("No single component's ablation costs a tenth of the answer's lead.")
    return in_short(
        f"More than a tenth of the answer's lead is lost when any one of {len(strong)} of the "
        f"{len(effects)} components is ablated. Most is lost with {worst}."
    )

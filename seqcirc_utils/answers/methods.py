"""Chapter 10: which method, if passes are few?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.methods import Methods
from seqcirc_utils.figures.style import many

FEW = 12
"""So many forward passes can be paid for, for each pair of prompts that is scored on."""


@answered()
def answer(found: Methods) -> Sequence[Part]:
    """The cheap methods by MIB's CPR with both kinds of ablation, beside the best of all."""
    asked = found.methods[found.methods["passes"] > 0]
    few = FEW * found.n_scored
    cheap = asked[asked["passes"] <= few].sort_values("cpr", ascending=False)
    if cheap.empty:
        return [f"No method that could be tried takes {few} passes or fewer."]
    first, best = cheap.iloc[0], asked.loc[asked["cpr"].idxmax()]
    mean = cheap.loc[cheap["mean_cpr"].idxmax()]
    holds = (
        "It comes first with mean ablation too."
        if mean["method"] == first["method"]
        else f"With mean ablation {mean['method']} comes first ({mean['mean_cpr']:.2f})."
    )
    table = pd.DataFrame(
        {
            "method": cheap["method"],
            "passes": [f"{v:.0f}" for v in cheap["passes"]],
            "CPR, counterfactual": [f"{v:z.2f}" for v in cheap["cpr"]],
            "CPR, mean ablation": [f"{v:z.2f}" for v in cheap["mean_cpr"]],
            "heads named": [f"{v:.0%}" for v in cheap["recall_heads"]],
        }
    )
    return [
        f"With {few} passes or fewer ({FEW} for each of {many(found.n_scored, 'pair')}), "
        f"{first['method']} has the largest area below its curve (CPR {first['cpr']:.2f}, for "
        f"{first['passes']:.0f} passes); of all methods {best['method']} has ({best['cpr']:.2f}, "
        f"for {best['passes']:.0f}). {holds}",
        table,
        "“Heads named” is the share of the heads with the largest exact effects that are among its "
        "own largest. A rerun that scores on more pairs may put another method first.",
    ]

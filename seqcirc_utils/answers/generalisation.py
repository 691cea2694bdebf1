"""Chapter 07: does zero ablation say the same as mean ablation?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.generalisation import Generalisation


@answered("effects")
def answer(found: Generalisation) -> Sequence[Part]:
    """What is left without each set of several heads, by probe and kind of ablation."""
    several = found.effects[found.effects["n_heads"] > 1]
    left = several.pivot_table(
        index=["probe", "set"], columns="kind", values="retained", sort=False
    )
    if left.empty or not {"mean", "zero"} <= set(left):
        return ["No set of several heads was ablated both ways here, so there is nothing to tell."]
    lower, alike = (left["zero"] < left["mean"]).sum(), (left["zero"] == left["mean"]).sum()
    titles = found.probes.set_index("probe")["title"]
    rows = left.groupby(level="probe", sort=False)[["mean", "zero"]].mean()
    table = pd.DataFrame(
        {
            "questions": [titles[probe] for probe in rows.index],
            "left after mean ablation": [f"{v:.0%}" for v in rows["mean"]],
            "left after zero ablation": [f"{v:.0%}" for v in rows["zero"]],
        }
    )
    return [
        f"Less is left after zero ablation in {lower} of {len(left)} cases (probes times sets of "
        f"heads), as much in {alike}.",
        table,
        "These are means over the sets. That zero ablation takes more does not show that the heads "
        "serve the task: a head that writes nothing is something the model never met, and random "
        "heads may cost more too. Whether they do is what the rerun adds; its other numbers are "
        "the same.",
    ]

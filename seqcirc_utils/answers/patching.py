"""Chapter 03: what would a longer list of components show?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.patching import Patching


@answered()
def answer(found: Patching) -> Sequence[Part]:
    """The next strongest components, and where the estimate says that they matter."""
    shown = list(found.exact["component"])
    effects = found.effects.set_index("component")
    strength = effects["ablation"].abs() + effects["patching"].abs()
    following = strength.drop(shown).nlargest(len(shown)).index
    if following.empty:
        return ["The map by position shows every component already: no list is longer."]
    places = found.positions.set_index("component").loc[following]
    where = places.abs().idxmax(axis=1)
    end = int((where == "end").sum())
    table = pd.DataFrame(
        {
            "component": following,
            "ablation": [f"{effects['ablation'][c]:+z.0%}" for c in following],
            "restored": [f"{effects['patching'][c]:+z.0%}" for c in following],
            "matters most at": where.to_numpy(),
            "estimate there": [f"{places[group][c]:+z.0%}" for c, group in where.items()],
        }
    )
    return [
        "The components of the table come next in strength, below those of the map by position. "
        "Of these, by the estimate, matter most at the end of the prompt: "
        f"{end} of {len(following)}.",
        table,
        "Ablation and restoring are exact here; the place is attribution patching's estimate, "
        f"whose rank correlation with exact restoring is {found.position_spearman:z.2f} for the "
        "components of the map. A rerun with the longer list restores them exactly.",
    ]

"""Chapter 12: could the diagonal stand out at this size at all?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.ranked_tasks import SEQUENCES, TITLES
from seqcirc_utils.chapters.specificity import Specificity

NEARLY = 0.9
"""A task that loses so large a share has hardly anything left to lose."""


@answered()
def answer(found: Specificity) -> Sequence[Part]:
    """How many tasks are lost nearly whole without another task's strongest components."""
    order = found.tasks.loc[found.tasks["kind"] == SEQUENCES, "task"].tolist()
    rows = found.damage[(found.damage["kind"] == "circuit") & found.damage["set"].isin(order)]
    if rows.empty:
        return ["No sequence's components were ablated here: nothing to tell."]
    own, other = rows[rows["set"] == rows["task"]], rows[rows["set"] != rows["task"]]
    lost = [int((part["mean"] >= NEARLY).sum()) for part in (own, other)]
    by_set = rows.groupby("set", sort=False)
    table = pd.DataFrame(
        [
            {
                "without the strongest of": TITLES[name],
                "its own task loses": _span(part[part["task"] == name]["mean"]),
                "the other tasks lose": _span(part[part["task"] != name]["mean"]),
            }
            for name, part in by_set
        ]
    )
    return [
        f"Without the strongest components of a sequence ({found.n_ablated} of "
        f"{found.n_components}), its own task loses {NEARLY:.0%} or more in {lost[0]} of "
        f"{len(own)} cases, and another task in {lost[1]} of {len(other)}. Where all is lost "
        "everywhere, no set can be more its own than another.",
        table,
        "Losses above 100% mean that the wrong answer is then preferred. Whether a smaller set "
        "spares the others, these numbers cannot say: that is what the rerun is for.",
    ]


def _span(shares: pd.Series) -> str:
    """The least and the largest share, in percent."""
    if shares.empty:
        return "–"
    low, high = f"{100 * shares.min():z.0f}%", f"{100 * shares.max():z.0f}%"
    return low if low == high else f"{low} to {high}"

"""Chapter 09: how many verdicts depend on a round number, and how many on too few prompts?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered, listed
from seqcirc_utils.paper.effects import UNDECIDED, about
from seqcirc_utils.paper.evidence import NOT_TESTED
from seqcirc_utils.paper.verdicts import Claims


@answered()
def answer(found: Claims) -> Sequence[Part]:
    """The verdicts that a limit moved by a fifth changes, and what would decide the open ones."""
    tested = found.verdicts[found.verdicts["verdict"] != NOT_TESTED]
    moved = tested[tested["flips"] != ""]
    open_ = tested[tested["verdict"] == UNDECIDED].sort_values("needed", kind="stable")
    enough, never = open_.dropna(subset="needed"), open_.loc[open_["needed"].isna(), "claim"]
    limits = pd.DataFrame(
        {
            "claim": moved["claim"],
            "verdict": moved["verdict"],
            "would change with": moved["flips"],
        }
    )
    decided = [
        f"{claim} with {about(n)}"
        for claim, n in zip(enough["claim"], enough["needed"], strict=True)
    ]
    return [
        f"On a limit: {len(moved)} of {len(tested)} verdicts, which would change if one of their "
        "limits were a fifth lower or higher.",
        *([limits] if len(limits) else []),
        f"On prompts: {len(open_)} verdicts, which are undecided. If the means stay where they "
        f"are, more prompts or questions decide: {listed(decided)}; no number decides: "
        f"{listed(list(never))}.",
        "Read from this chapter's verdicts. In a rerun the means move too, so other claims may be "
        "decided than these.",
    ]

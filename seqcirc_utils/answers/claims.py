"""Chapter 09: how many verdicts hang on a round number, and how many on too few prompts?"""

import re
from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered, listed
from seqcirc_utils.paper.effects import UNDECIDED
from seqcirc_utils.paper.evidence import NOT_TESTED
from seqcirc_utils.paper.verdicts import Claims


@answered()
def answer(found: Claims) -> Sequence[Part]:
    """The verdicts that a limit moved by a fifth changes, and what would decide the open ones."""
    tested = found.verdicts[found.verdicts["verdict"] != NOT_TESTED]
    moved = tested[tested["flips"] != ""]
    open_ = needed(tested[tested["verdict"] == UNDECIDED])
    enough = sorted((n, claim) for claim, n in open_.items() if n is not None)
    never = [claim for claim, n in open_.items() if n is None]
    limits = pd.DataFrame(
        {
            "claim": moved["claim"],
            "verdict": moved["verdict"],
            "would change with": moved["flips"],
        }
    )
    decided = [f"{claim} with about {n}" for n, claim in enough]
    return [
        f"On a limit: {len(moved)} of {len(tested)} verdicts, which would change if one of their "
        "limits were a fifth lower or higher.",
        *([limits] if len(limits) else []),
        f"On prompts: {len(open_)} verdicts, which are undecided. If the means stay where they "
        f"are, more prompts or questions decide: {listed(decided)}; no number decides: "
        f"{listed(never)}.",
        "Read from this chapter's verdicts. In a rerun the means move too, so other claims may be "
        "decided than these.",
    ]


def needed(undecided: pd.DataFrame) -> dict[str, int | None]:
    """Claim to the prompts that would decide it; none where no number would."""
    found: dict[str, int | None] = {}
    for claim, reason in zip(undecided["claim"], undecided["reason"], strict=True):
        told = re.search(r"about (\d+) prompts or questions would decide", reason)
        found[claim] = int(told[1]) if told else None
    return found

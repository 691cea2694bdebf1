"""Chapter 00: which circuit of the uneven writers is right at another threshold?"""

from collections.abc import Mapping, Sequence

import pandas as pd

from seqcirc_utils.analyses.otherwise import spendings
from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.ground_truth import GroundTruth
from seqcirc_utils.planted.circuits import PLANTED

TRIED = 0.9
"""The threshold of the exercise."""


@answered()
def answer(found: GroundTruth) -> Sequence[Part]:
    """What may go at this run's threshold and at the one that is tried."""
    costs = _costs(found)
    rows = [_row(costs, threshold) for threshold in sorted({found.threshold, TRIED})]
    loss = ", ".join(f"without {name} {100 * cost:.0f} points" for name, cost in costs.items())
    return [
        f"The three writers only write, so their losses add up: {loss}. What a threshold leaves "
        "to lose can be spent on more than one set of them; the right circuits are those that lose "
        "the most writers. The order in which a search meets the writers matters where it can "
        "spend its room on fewer.",
        pd.DataFrame(rows),
        "Read from what single ablations cost in this chapter. A rerun searches, and says the same "
        "of these models, where losses do add up.",
    ]


def _costs(found: GroundTruth) -> dict[str, float]:
    """What is lost without each of the uneven writers, in the first task's model."""
    rows = found.alone[found.alone["planted"] == "uneven"]
    shares = rows[rows["task"] == rows["task"].iloc[0]].set_index("component")["share"]
    writers = [str(c) for c, role in PLANTED["uneven"].roles.items() if role.startswith("repeats")]
    return {name: float(1 - shares[name]) for name in writers}


def right(costs: Mapping[str, float], threshold: float) -> tuple[list[str], bool]:
    """The writers that each right circuit holds, and whether the order of a search matters."""
    gone = spendings(costs, 1 - threshold)
    most = max(map(len, gone))
    held = [" ".join(n for n in costs if n not in g) or "none" for g in gone if len(g) == most]
    return held, min(map(len, gone)) < most


def _row(costs: Mapping[str, float], threshold: float) -> dict[str, str]:
    held, order = right(costs, threshold)
    return {
        "threshold": f"{threshold:g}",
        "room to lose, points": f"{100 * (1 - threshold):.0f}",
        "right: the path and the writers": " or ".join(held),
        "does the order matter?": "yes" if order else "no: each order ends in one that is right",
    }

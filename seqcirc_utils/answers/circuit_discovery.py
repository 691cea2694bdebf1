"""Chapter 04: what stays when the search must keep more?"""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt

from seqcirc_utils.analyses.otherwise import heads_of, on_path
from seqcirc_utils.answers.fold import Part, Picture, answered, listed
from seqcirc_utils.chapters.circuit_discovery import RANKED, CircuitDiscovery
from seqcirc_utils.figures.style import ANSWER, NEUTRAL, OKABE_ITO, closed

TRIED = 0.9
"""The threshold of the exercise."""


@answered()
def answer(found: CircuitDiscovery) -> Sequence[Part]:
    """The smallest circuits on the way of the ranked search, and what repeated searches found."""
    steps = found.steps[found.steps["search"] == RANKED]
    everything = list(found.estimates["component"])
    left = on_path(steps, everything, TRIED)
    circuit = set(map(str, found.circuit.components))
    more = [head for head in heads_of(left) if head not in circuit]
    again = found.components[found.components["inclusion"] == 1]["component"]
    return [
        f"The smallest circuit on the way of the ranked search that keeps {TRIED:.0%}: {len(left)} "
        f"of {len(everything)} components, where {found.circuit.threshold:.0%} is kept by "
        f"{len(circuit)}. The heads that it holds beside those of the circuit: {listed(more)}.",
        Picture(_path(steps, everything, found.circuit.threshold), ALT),
        "As for another seed, prompts or order, the repeated searches of this chapter tell: "
        f"heads of the circuit that all of them found again: {listed(heads_of(again))}.",
        "So few suffice for the higher threshold. A search that has it from the start goes another "
        "way from the first removal on that it refuses, so a rerun may end with others, and with "
        "fewer.",
    ]


ALT = "Curves of the heads and MLPs in the smallest circuit on the way that keeps each share."


def _path(steps, everything: Sequence[str], threshold: float):
    """Heads and MLPs of the smallest circuit on the way, by what it keeps."""
    at = np.arange(round(100 * threshold), 101) / 100
    left = [on_path(steps, everything, t) for t in at]
    heads = [len(heads_of(names)) for names in left]
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    axis.plot(100 * at, heads, ".-", color=ANSWER, label="heads")
    mlps = [len(names) - n for names, n in zip(left, heads, strict=True)]
    axis.plot(100 * at, mlps, ".-", color=OKABE_ITO[4], label="MLPs")
    axis.axvline(100 * TRIED, color=NEUTRAL, lw=0.8, ls="--")
    axis.set(xlabel="kept at least (%)", ylabel="components", ylim=(0, None))
    axis.legend()
    return closed(figure)

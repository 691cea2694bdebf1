"""Chapter 06: what do the circuits share when they are smaller?"""

from collections.abc import Sequence

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from seqcirc_utils.analyses.otherwise import leading
from seqcirc_utils.analyses.overlap import overlap
from seqcirc_utils.answers.fold import Part, Picture, answered, listed
from seqcirc_utils.chapters.circuit_tasks import TITLES
from seqcirc_utils.chapters.cross_task import CrossTask
from seqcirc_utils.components import Component, by_kind
from seqcirc_utils.figures.style import ANSWER, NEUTRAL, closed

HALF = 0.5
SHARES = [step / 10 for step in range(1, 11)]


@answered("circuits")
def answer(found: CrossTask) -> Sequence[Part]:
    """The shared heads when each circuit is cut to those of its heads that matter most."""
    if len(found.circuits) < 2:
        return ["Fewer than two tasks have a circuit, so there is nothing to share."]
    curve = smaller(found)
    half = curve.loc[HALF]
    return [
        f"Heads that the whole circuits share: {curve.loc[1.0, 'shared']:.0f}. With each circuit "
        f"cut to the half of its heads whose ablation costs its task most: {half['shared']:.0f} "
        f"({half['names']}), where random sets of these sizes would share {half['expected']:.1f}.",
        Picture(_curve(curve), ALT),
        "The circuits are cut by what each head's ablation costs, as this chapter keeps it. A "
        "search with a lower threshold chooses by what the rest still does, so a rerun may keep "
        "other heads, and fewer or more of them.",
    ]


ALT = "Curves of shared heads and of those that chance gives, by the share of the circuits kept."


def smaller(found: CrossTask) -> pd.DataFrame:
    """Heads that the circuits share, and how many chance gives, by the share that each keeps."""
    effects = found.importance.set_index("component")
    heads = {task: by_kind(circuit)["heads"] for task, circuit in found.circuits.items()}
    rows = []
    for share in SHARES:
        sets = [
            set(map(Component.parse, leading(effects[TITLES[task]], map(str, own), share)))
            for task, own in heads.items()
        ]
        against = overlap(sets, found.shared["heads"]["total"])
        row = {"shared": len(against.shared), "expected": against.expected}
        rows.append(row | {"names": listed(against.shared)})
    return pd.DataFrame(rows, index=SHARES)


def _curve(curve: pd.DataFrame) -> Figure:
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    percent = [100 * share for share in curve.index]
    axis.plot(percent, curve["shared"], ".-", color=ANSWER, label="in all circuits")
    axis.plot(percent, curve["expected"], ls="--", color=NEUTRAL, label="expected by chance")
    axis.set(xlabel="heads of each circuit kept (%)", ylabel="heads", ylim=(0, None))
    axis.legend()
    return closed(figure)

"""Chapter 11: at one layer, or little by little?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.interchange import Interchange


@answered()
def answer(found: Interchange) -> Sequence[Part]:
    """Between which of the layers tried the wanted answer rises, and by how much."""
    rows = found.layers[(found.layers["half"] == "judging") & (found.layers["kind"] == "deviation")]
    by_layer = rows[rows["source"] != rows["base"]].groupby("layer")
    wanted = by_layer["wanted"].mean()
    if len(wanted) < 2:
        return ["One layer or none was tried between different tasks: nothing rises."]
    steps = wanted.diff().dropna()
    to = int(steps.idxmax())
    before = int(wanted.index[wanted.index.get_loc(to) - 1])
    rise, whole = steps.max(), wanted.max() - wanted.min()
    table = pd.DataFrame(
        {"before block": wanted.index, "wanted answers": [f"{v:.0%}" for v in wanted]}
    )
    outcome = (
        "The wanted answer does not become more frequent with depth at all."
        if rise <= 0
        else f"The largest step is from before block {before} to before block {to}: "
        f"{100 * rise:.0f} of the {100 * whole:.0f} points between the lowest and the highest "
        "share."
    )
    return [
        f"{outcome} What lies between two layers that were tried cannot be seen here. "
        f"A share rests on answers to this many prompts: {by_layer['n'].sum().max()}.",
        table,
        "Means over the pairs of different tasks, on the half of the prompts that judges. A rerun "
        "before every block repeats these values, and fills in those between.",
    ]

"""Chapter 13: which claims do two models agree on?"""

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered, listed
from seqcirc_utils.paper.across_models import AcrossModels
from seqcirc_utils.paper.effects import CONTRADICTED, SUPPORTED


@answered()
def answer(found: AcrossModels) -> Sequence[Part]:
    """Claims that are decided for both models of each pair: alike, or not."""
    here = found.models[found.models["here"]]
    names = [name for name in here["name"] if name in found.claims]
    title = here.set_index("name")["title"]
    decided = {n: found.claims[n].isin([SUPPORTED, CONTRADICTED]) for n in names}
    rest = (
        "Read from each model's own verdicts. Undecided claims are left out: more prompts may "
        "decide them either way."
    )
    if len(names) < 2:
        counted = "; ".join(
            f"{title[n]}: {(found.claims[n] == SUPPORTED).sum()} supported, "
            f"{(found.claims[n] == CONTRADICTED).sum()} contradicted, of {len(decided[n])}"
            for n in names
        )
        return [
            "Verdicts of two models are not here, so nothing can agree or differ yet. "
            f"{counted or 'None of any model'}.",
            rest,
        ]
    rows = []
    for one, other in combinations(names, 2):
        both = found.claims[decided[one] & decided[other]]
        differ = both.loc[both[one] != both[other], "claim"].tolist()
        rows.append(
            {
                "models": f"{title[one]}, {title[other]}",
                "decided for both": str(len(both)),
                "alike": str(len(both) - len(differ)),
                "not alike": listed(differ),
            }
        )
    return ["Claims that are supported or contradicted for both models:", pd.DataFrame(rows), rest]

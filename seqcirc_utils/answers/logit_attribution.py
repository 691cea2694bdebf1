"""Chapter 02: do the same parts lead on other prompts?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.analyses.otherwise import same_set
from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.logit_attribution import LogitAttribution

N = 5
"""How many parts lead."""


@answered("direct")
def answer(found: LogitAttribution) -> Sequence[Part]:
    """In how many prompts each of the leading parts is among the leading ones."""
    top, n = same_set(found.direct, N), found.direct.shape[1]
    rows = found.contributions.iloc[top[:, 0]]
    always = rows["component"][top[:, 1] == n].tolist()
    table = pd.DataFrame(
        {
            "part": rows["component"],
            "mean contribution, logits": [f"{value:+z.2f}" for value in rows["effect"]],
            f"prompts where it is among the {N} largest": [f"{k} of {n}" for k in top[:, 1]],
        }
    )
    return [
        f"Among the {N} largest on average, and in each of the {n} prompts too: "
        f"{', '.join(always) or 'none'}.",
        table,
        "Contributions are compared by size, for and against the answer. What leads in every "
        "prompt here should lead with another seed too; of the others a rerun may name different "
        "ones.",
    ]

"""Chapter 01: is one sentence harder than another?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.task_construction import TaskConstruction


@answered()
def answer(found: TaskConstruction) -> Sequence[Part]:
    """The templates by logit difference, and whether intervals tell first and last apart."""
    rows = pd.DataFrame(found.by_template)
    if len(rows) < 2:
        return ["Fewer than two sentences could be tried with this model: nothing to compare."]
    rows = rows.sort_values("logit_diff", ascending=False)
    best, worst = rows.iloc[0], rows.iloc[-1]
    apart = best["logit_diff_low"] > worst["logit_diff_high"]
    outcome = (
        "Their intervals do not meet: the sentence matters."
        if apart
        else "Their intervals meet: so few prompts do not tell the two apart."
    )
    table = pd.DataFrame(
        {
            "sentence": rows["template"],
            "logit difference": _ranged(rows, "logit_diff", ".2f"),
            "accuracy": _ranged(rows, "accuracy", ".0%"),
            "prompts": rows["n"].astype(str),
        }
    )
    return [
        f"The lead of the answer is largest in “{best['template']}” ({best['logit_diff']:z.2f} "
        f"logits) and smallest in “{worst['template']}” ({worst['logit_diff']:z.2f}). {outcome}",
        table,
        "From the prompts behind the table by sentence. A rerun draws its own prompts, so its "
        "means differ within these intervals or so.",
    ]


def _ranged(rows: pd.DataFrame, name: str, form: str) -> list[str]:
    values = rows[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
    return [f"{m:z{form}} [{low:z{form}}, {high:z{form}}]" for m, low, high in values]

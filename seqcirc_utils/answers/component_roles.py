"""Chapter 05: which roles survive a stricter rule?"""

from collections.abc import Sequence

import pandas as pd

from seqcirc_utils.analyses.otherwise import roles_at
from seqcirc_utils.analyses.roles import ATTENTION, HEAD_ROLES, NONE
from seqcirc_utils.answers.fold import Part, answered
from seqcirc_utils.chapters.component_roles import ComponentRoles

TRIED = 0.4
"""The least attention of the exercise."""
SURE = 0.95
"""A role is sure that comes out in so large a share of resamples of the prompts."""


@answered("ov", "direct")
def answer(found: ComponentRoles) -> Sequence[Part]:
    """How many heads keep their role, by role and by how sure it was."""
    heads = found.components[found.components["head"].notna()]
    heads = heads.assign(strict=roles_at(heads, found.spread, TRIED))
    had = heads[~heads["role"].isin([NONE, ""])]
    stays, sure = had["strict"] == had["role"], had["confidence"] >= SURE
    table = pd.DataFrame(
        [
            {
                "role": role,
                f"heads at {ATTENTION:g}": str((had["role"] == role).sum()),
                "of these still so": str((stays & (had["role"] == role)).sum()),
                f"heads at {TRIED:g}": str((heads["strict"] == role).sum()),
            }
            for role in HEAD_ROLES
        ]
    )
    return [
        f"Heads that keep their role when it asks for attention of {TRIED:g}: {stays.sum()} of "
        f"{len(had)}. Of those that were sure (the same role in {SURE:.0%} of the resamples of the "
        f"prompts): {(stays & sure).sum()} of {sure.sum()}. A role that is sure of the prompts "
        "need not be sure of the threshold.",
        table,
        "The rules are applied anew to the evidence that this chapter kept, so a rerun with the "
        "same prompts gives the same roles. MLPs have no attention, and keep theirs.",
    ]

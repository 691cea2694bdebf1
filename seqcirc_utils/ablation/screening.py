"""Effects of every component: exact where they may matter, by control variates elsewhere.

The gradient tells roughly what each component does on every prompt, for the price of one pass back.
On the first prompts it is corrected by exact effects, which makes its mean unbiased: a difference
estimator, in the survey literature's name. A component that may matter by that is removed on all
prompts. ``benchmarks/screening.py`` compares it with removing every component on all of them.
"""

from collections.abc import Sequence

import torch

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.components import Component, components

MATTERS = 0.02
"""Components that may move the score by more than this share of it are removed on all prompts."""
ERRORS = 2
"""Standard errors by which the corrected estimate may be off."""


@torch.no_grad()
def single_effects(
    evaluator: Evaluator,
    candidates: Sequence[Component],
    n_exact: int = 0,
    *,
    progress: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Changes of the logit difference when one component is replaced.

    Args:
        evaluator: Prompts, and what replaces a component.
        candidates: The components.
        n_exact: Prompts on which each of them is replaced; all when 0.
        progress: Label of the progress bars.

    Returns:
        The exact changes ``[candidate, n]``, NaN where a component was not replaced; and values
        ``[candidate, n]`` whose means estimate the mean changes. Where a component was replaced on
        all prompts, these are the exact changes; elsewhere the gradient's, to which the first
        prompts add what it is off by, for all prompts in their place.
    """
    few, n = evaluator.first(n_exact), len(evaluator.prompts)
    m = len(few.prompts)
    exact = torch.full((len(candidates), n), torch.nan)
    exact[:, :m] = _changes(few, candidates, progress)
    if m == n:
        return exact, exact
    order = components(evaluator.model)
    values = evaluator.slopes()[[order.index(c) for c in candidates]]  # [candidate, n]
    off = exact[:, :m] - values[:, :m]
    error = ERRORS * off.std(1) / m**0.5 if m > 1 else torch.inf
    most = (values.mean(1) + off.mean(1)).abs() + error
    matters = most > MATTERS * evaluator.intact.logit_diff.mean().abs()
    chosen = [c for c, may in zip(candidates, matters.tolist(), strict=True) if may]
    rest = evaluator.with_(rows=range(m, n))
    exact[matters, m:] = _changes(rest, chosen, progress and f"{progress}, all prompts")
    values[:, :m] += off * n / m
    values[matters] = exact[matters]
    return exact, values


def _changes(
    evaluator: Evaluator, candidates: Sequence[Component], progress: str | None
) -> torch.Tensor:
    """Exact changes ``[candidate, n]``."""
    scores = evaluator.differences([[c] for c in candidates], progress=progress)
    return scores - evaluator.intact.logit_diff

"""What methods make of components whose work is known."""

from collections.abc import Collection

import numpy as np
import pandas as pd

from seqcirc_utils.ablation.replay import Activations
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.methods.evaluation import auroc
from seqcirc_utils.methods.registry import METHODS, Scored, scores
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import PromptSets

NOISE = 1e-4
"""Scores that are a smaller share of the largest are rounding, and count as zero."""


def recovery(
    model: Model,
    sets: PromptSets,
    means: Activations,
    works: Collection[Component],
    smallest: Collection[Collection[Component]],
    threshold: float,
    seed: int = 0,
) -> pd.DataFrame:
    """Every method on one model whose circuit is known.

    Args:
        model: The model.
        sets: Its prompts; scored on the evaluation prompts and their partners.
        means: What mean ablation puts in place.
        works: The components that work on the answer, for or against it.
        smallest: The smallest circuits, any of which is right.
        threshold: What the searches keep.
        seed: Draws the random scores.

    Returns:
        A row per method: ``method``; ``auroc``, how often a working component's score is larger (in
        size) than an idle one's; ``recovered``, whether the largest, as many as the smallest
        circuit has, are a smallest circuit. NaN and False, with ``why``, for a method that does not
        apply.
    """
    everything, rows = components(model), []
    known: dict[str, Scored] = {}
    right = np.array([c in works for c in everything])
    size = min(map(len, smallest))
    for name in METHODS:
        try:
            known[name] = scores(
                *(model, sets.evaluation, sets.corrupted),
                method=name,
                means=means,
                threshold=threshold,
                seed=seed,
                known=known,
            )
        except UserError as refusal:
            rows.append([name, float("nan"), False, str(refusal)])
            continue
        values = known[name].values
        values = np.where(np.abs(values) < NOISE * np.abs(values).max(), 0, values)
        order = np.argsort(-np.abs(values), kind="stable")
        apart = np.abs(values[order[size - 1]]) > np.abs(values[order[size]])  # no tie decides
        found = bool(apart) and {everything[i] for i in order[:size]} in [set(s) for s in smallest]
        rows.append([name, auroc(values, right), found, ""])
    return pd.DataFrame(rows, columns=["method", "auroc", "recovered", "why"])

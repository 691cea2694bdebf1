"""Which parts write the answer: the logit lens, and direct logit attribution."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch

from seqcirc_utils.analyses.attribution import direct_attribution, member_lens, processed
from seqcirc_utils.chapters.findings import Findings, array, table
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import components
from seqcirc_utils.errors import UserError, section
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.scores import score
from seqcirc_utils.prompts.vocabulary import vocabulary
from seqcirc_utils.statistics import intervals

ROUNDING = 1e-3
"""How far contributions may add up to something else, as a share of the logit difference."""


@dataclass(frozen=True, kw_only=True)
class LogitAttribution(Findings):
    """What the residual stream says after each block, and what each part wrote into it.

    Lens arrays are probabilities over the whole vocabulary; their first entry, before block 0, is
    the embedding. A section that does not apply leaves a table without rows and arrays without
    blocks or parts.

    Attributes:
        contributions: A row per part: its direct contribution to the logit difference (logits),
            the mean over prompts with its 95% interval. ``embed`` and ``bias`` (what no component
            writes) have no layer.
        direct: The same, prompt by prompt ``[part, n]``.
        lens_end: Every member of the task, read at the end ``[block + 1, n, member]``.
        lens_shown: The member that stands there, read at each member's position, and the last
            member, read at the end: means over prompts ``[block + 1, members shown + 1]``.
        lens_next: The successor of that member (at the end: the answer), likewise.
        answer: Which member is the answer ``[n]``.
        logit_diff: The model's mean logit difference (logits).
        error: The largest distance between a prompt's summed contributions and its logit
            difference, as a share of the largest logit difference.
        templates: How many prompts each template got.
        missing: What does not apply to the model (``lens``, ``direct``), and why.
    """

    stage = "02_logit_attribution"

    contributions: pd.DataFrame = table(
        "csv", component=str, layer="Int64", head="Int64", effect=float, low=float, high=float
    )
    direct: np.ndarray = array()
    lens_end: np.ndarray = array()
    lens_shown: np.ndarray = array()
    lens_next: np.ndarray = array()
    answer: np.ndarray = array()
    logit_diff: float
    error: float | None
    templates: str
    missing: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Read the stream after every block, and split the logit difference; see the class.

        It changes the setting's model for good, as :func:`attribution.processed` says.
        """
        lm, prompts, templates = at.model, at.sets().evaluation, at.tally()
        whole = score(lm, prompts)
        answer = torch.tensor(prompts.starts) + prompts.member_positions.shape[1]
        missing = {}
        shapes = {"lens_end": (0, len(prompts), 0), "lens_shown": (0, 0), "lens_next": (0, 0)}
        lens = {name: np.zeros(shape) for name, shape in shapes.items()}
        with section(missing, "lens"):
            lens = _lens(lm, prompts, answer)
            end, n = lens["lens_end"][-1], torch.arange(len(prompts))  # [n, member]
            ours, last = end[n, answer], end[n, answer - 1]
            lead = np.log(ours) - np.log(last)
            assert np.allclose(lead, whole.logit_diff, atol=1e-4), "the lens ends in the model"
            assert np.allclose(ours, whole.answer_prob, atol=1e-4), "the lens ends in the model"
        contributions, direct, error = cls.empty("contributions"), np.zeros((0, len(prompts))), None
        with section(missing, "direct"):  # last: nothing can be measured on the model after it
            names, parts = direct_attribution(processed(lm), prompts)  # [part, n]
            error = _error(parts, whole.logit_diff)
            contributions = _contributions(lm, names, parts, at["seed"])
            direct = parts.numpy()
        return cls(
            contributions=contributions,
            direct=direct,
            **lens,
            answer=answer.numpy(),
            logit_diff=whole.logit_diff.mean().item(),
            error=error,
            templates=templates,
            missing=missing,
        )


def _lens(lm: Model, prompts: Prompts, answer: torch.Tensor) -> dict[str, np.ndarray]:
    """The three lens arrays of the findings."""
    positions, lens = member_lens(lm, prompts, vocabulary(prompts.task, lm.tokenizer))
    # lens: [block + 1, n, position, member]
    n, m = prompts.member_positions.shape
    place = torch.searchsorted(torch.tensor(positions), prompts.member_positions)  # [n, m]
    place = torch.cat([place, torch.full((n, 1), len(positions) - 1)], 1)  # [n, m + 1]
    shown = answer[:, None] - torch.tensor([*range(m, 0, -1), 1])  # [n, m + 1]
    rows = torch.arange(n)[:, None]
    return {
        "lens_end": lens[:, :, -1].numpy(),
        "lens_shown": lens[:, rows, place, shown].mean(1).numpy(),
        "lens_next": lens[:, rows, place, shown + 1].mean(1).numpy(),
    }


def _error(direct: torch.Tensor, whole: torch.Tensor) -> float:
    """How far contributions ``[part, n]`` are from adding up to logit differences ``[n]``.

    Raises:
        UserError: when they do not: folding the weights has changed what the model computes.
    """
    error = ((direct.sum(0) - whole).abs().max() / whole.abs().max()).item()
    if not error < ROUNDING:
        raise UserError(
            f"direct contributions do not add up to the logit difference (relative error "
            f"{error:.1e}, allowed is {ROUNDING}), so direct logit attribution does not apply. "
            "Ablation does."
        )
    return error


def _contributions(lm: Model, names: list[str], direct: torch.Tensor, seed: int) -> pd.DataFrame:
    """Means and intervals of contributions ``[part, n]``: the embedding, components, the bias."""
    mean, low, high = (values.numpy() for values in intervals(direct, seed))
    parts = components(lm)
    return pd.DataFrame(
        {
            "component": names,
            "layer": pd.array([None, *(c.layer for c in parts), None], dtype="Int64"),
            "head": pd.array([None, *(c.head for c in parts), None], dtype="Int64"),
            "effect": mean,
            "low": low,
            "high": high,
        }
    )

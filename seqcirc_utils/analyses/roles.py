"""What each component does: where a head looks, what it writes, and the role that follows.

Three looks at clean prompts (paper, sections on the functions of heads and on MLPs; claims C10 to
C18): attention between groups of tokens, the OV circuit's output on members read through the
unembedding, and the logit lens before and after each MLP. :func:`assign` turns them into roles by
the thresholds below, and by nothing else.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.analyses.attention import ATTENTION_EVIDENCE, SIZE_EVIDENCE
from seqcirc_utils.analyses.writes import TOP_K
from seqcirc_utils.components import components
from seqcirc_utils.models.loading import Model

ATTENTION = 0.2
"""Least mean attention from the queries of a role to its keys."""
LIFT = 1.5
"""… and at least so many times what attention spread evenly over all visible tokens would give."""
OV_SHARE = 0.25
"""Least share of members hit, for a head that writes the next member or copies."""
OV_P = 0.01
"""… and largest p-value against shuffled successors."""
DIRECT = 0.1
"""Inhibition: a head's own write lowers the last member's logit by so many logits at least."""
LENS_STEP = 0.02
"""Least rise of the lens probability of the next (last) member across an MLP."""

HEAD_ROLES = (
    "next member",
    "copy",
    "inhibition",
    "transport to the end",
    "duplicate token",
    "member detection",
)
MLP_ROLES = ("promotes next member", "copies last member")
NONE = "none"

HEAD_EVIDENCE = (
    *ATTENTION_EVIDENCE,
    "ov_next",
    "ov_copy",
    *(f"{name}_size" for name in SIZE_EVIDENCE),
    "direct_next",
    "direct_last",
)
MLP_EVIDENCE = ("lens_next", "lens_last", "lens_overtakes", "lens_switches")
DECIDING = (
    *SIZE_EVIDENCE,
    "ov_next",
    "ov_copy",
    "direct_last",
    "lens_next",
    "lens_last",
)
"""Evidence columns that the rules read, beside the sizes."""
EVIDENCE_COLUMNS = tuple(
    f"{name}{end}"
    for name in (*HEAD_EVIDENCE, *MLP_EVIDENCE)
    for end in (("", "_low", "_high") if name in DECIDING else ("",))
)
"""The columns of evidence in the table of roles: means, and 95% intervals of what decides."""


def thresholds() -> dict[str, float]:
    """The thresholds of the rules, by name."""
    return {
        "attention": ATTENTION,
        "lift": LIFT,
        "top_k": TOP_K,
        "ov_share": OV_SHARE,
        "ov_p": OV_P,
        "direct": DIRECT,
        "lens_step": LENS_STEP,
    }


def evidence(
    by_head: Mapping[str, torch.Tensor], by_mlp: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """All evidence, per component and prompt.

    Args:
        by_head: Columns of :data:`HEAD_EVIDENCE` ``[layer, head, n]``, those that can be told: one
            at least.
        by_mlp: Columns of :data:`MLP_EVIDENCE` ``[layer, n]``, likewise.

    Returns:
        Column to ``[component, n]`` in the order of :func:`seqcirc_utils.components.components`;
        NaN where a column does not apply (MLPs have no attention) or cannot be told.
    """
    layers, n_heads, n = next(iter(by_head.values())).shape
    found = {}
    for name in (*HEAD_EVIDENCE, *MLP_EVIDENCE):
        whole = torch.full((layers, n_heads + 1, n), torch.nan)  # [layer, head … then MLP, n]
        if name in by_head:
            whole[:, :-1] = by_head[name]
        elif name in by_mlp:
            whole[:, -1] = by_mlp[name]
        found[name] = whole.flatten(0, 1)  # [component, n]
    return found


def told(means: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether all that decides a component's role is there: boolean, of the columns' shape."""
    of_mlps = {"lens_next", "lens_last"}
    of_heads = {*DECIDING, *(f"{k}_size" for k in SIZE_EVIDENCE), "p_next", "p_copy"} - of_mlps
    heads, mlps = (~np.isnan([means[k] for k in ks]).any(0) for ks in (of_heads, of_mlps))
    return np.logical_or(heads, mlps)


def assign(means: Mapping[str, np.ndarray], spread: Mapping[str, float]) -> np.ndarray:
    """Roles by the rules, and by nothing but the rules.

    Args:
        means: Evidence columns, all of one shape, with ``p_next`` and ``p_copy``; NaN decides
            nothing.
        spread: What evenly spread attention would give in each attention column.

    Returns:
        Names of :data:`HEAD_ROLES`, :data:`MLP_ROLES` or ``none``, of the same shape.
    """
    # [place, …] for each of the three places of column A; the one moves most counts.
    enough = np.stack([means[k] >= max(ATTENTION, LIFT * spread[k]) for k in SIZE_EVIDENCE])
    moved = np.stack([means[k] * means[f"{k}_size"] for k in SIZE_EVIDENCE])
    moved = np.where(enough, moved, -1)
    end, copies, members = enough & (moved == moved.max(0))  # […] each
    next_ = (means["ov_next"] >= OV_SHARE) & (means["p_next"] <= OV_P)
    copy = (means["ov_copy"] >= OV_SHARE) & (means["p_copy"] <= OV_P)
    conditions = {
        "next member": end & next_ & (means["ov_next"] > means["ov_copy"]),
        "copy": end & copy,
        "inhibition": end & (means["direct_last"] <= -DIRECT),
        "transport to the end": end,
        "duplicate token": copies,
        "member detection": members,
        "promotes next member": (means["lens_next"] >= LENS_STEP)
        & (means["lens_next"] >= means["lens_last"]),
        "copies last member": means["lens_last"] >= LENS_STEP,
    }
    return np.select(list(conditions.values()), list(conditions), default=NONE)


def component_roles(
    model: Model,
    found: Mapping[str, torch.Tensor],
    p_values: Mapping[str, np.ndarray],
    spread: Mapping[str, float],
    seed: int,
    draws: int = 1000,
) -> pd.DataFrame:
    """Role of every component, how sure it is, and its evidence.

    Args:
        model: The model.
        found: As :func:`evidence` gives.
        p_values: ``p_next`` and ``p_copy`` of every head, layer by layer; held fixed in resampling.
            Empty where they cannot be told.
        spread: As :meth:`Observation.spreads` gives.
        seed: Draws the resamples of prompts.
        draws: How many.

    Returns:
        A row per component: ``component``, ``layer``, ``head``, ``role``, ``confidence`` (share of
        the resamples of prompts in which the same role comes out), ``rival`` (the most frequent
        other role, with ``rival_share``), then the means of the evidence, with 95% intervals
        (``…_low``, ``…_high``) of the columns that decide, and the p-values. Where something that
        decides cannot be told, the role is empty and the shares are NaN.
    """
    everything = components(model)
    n = next(iter(found.values())).shape[1]
    p: dict[str, np.ndarray] = {}
    for name in ("p_next", "p_copy"):
        grid = np.full((model.n_layers, model.n_heads + 1), np.nan)  # [layer, head … then MLP]
        if name in p_values:
            grid[:, :-1] = p_values[name].reshape(model.n_layers, model.n_heads)
        p[name] = grid.ravel()  # [component]
    means = {name: value.double().mean(-1).numpy() for name, value in found.items()}
    role = assign(means | p, spread)  # [component]
    # A resample of n prompts is how often each is in it: [draw, n] @ [n, component].
    picked = torch.randint(0, n, (draws, n), generator=derive_generator(seed, "prompts"))
    weights = torch.stack([row.bincount(minlength=n) for row in picked]).double() / n
    resampled = {k: (weights @ v.double().T).numpy() for k, v in found.items()}
    wide = {name: np.broadcast_to(value, (draws, len(everything))) for name, value in p.items()}
    drawn = assign(resampled | wide, spread)  # [draw, component]
    rivals = [pd.Series(drawn[:, i][drawn[:, i] != r]).value_counts() for i, r in enumerate(role)]
    known = told(means | p)
    table = pd.DataFrame(
        {
            "component": list(map(str, everything)),
            "layer": [c.layer for c in everything],
            "head": pd.array([c.head for c in everything], dtype="Int64"),
            "role": np.where(known, role, ""),
            "confidence": np.where(known, (drawn == role).mean(0), np.nan),
            "rival": np.where(known, [r.index[0] if len(r) else "" for r in rivals], ""),
            "rival_share": np.where(
                known, [r.iloc[0] / draws if len(r) else 0.0 for r in rivals], np.nan
            ),
        }
    )
    for name in found:
        table[name] = means[name]
        if name in DECIDING:
            bounds = np.quantile(resampled[name], (0.025, 0.975), axis=0)
            table[f"{name}_low"], table[f"{name}_high"] = bounds
    return table.assign(**p)

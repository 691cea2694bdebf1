"""Which parts the answer depends on: ablation, activation patching, positions, paths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.paths import path_effects
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.ablation.screening import single_effects
from seqcirc_utils.analyses.attribution import position_attribution
from seqcirc_utils.chapters.findings import Findings, array, each, table
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import section
from seqcirc_utils.statistics import over_groups, positive_baseline, ratios

N_SENDERS = 3
"""Heads whose paths are patched."""


@dataclass(frozen=True, kw_only=True)
class Patching(Findings):
    """What happens to the logit difference when parts of the model are replaced.

    All effects are shares: of the whole model's mean logit difference where a part is ablated, of
    the clean run's lead over the corrupted one where it is restored.

    Attributes:
        effects: A row per component: the ``ablation`` and ``patching`` effect, means over prompts
            with 95% intervals (``by_start``: of ablation where starts, not prompts, count as
            drawn), and ``n_ablated``, the prompts on which it was ablated. Where these are not all,
            the rest is estimated: :func:`~seqcirc_utils.ablation.screening.single_effects`.
        positions: A row per component: the estimated recovery at each group of positions
            (attribution patching).
        exact: The same by exact restoring, for the strongest components.
        paths: The recovery by one path, from a head into the q, k or v of a later one.
        ablation: Effects ``[component, n]``; NaN on prompts where a component was not ablated.
        values: The same where a component was ablated on all prompts; elsewhere numbers whose means
            over prompts are the estimated effects.
        patching: Recoveries ``[component, pair]``.
        position_spearman: Rank correlation of ``exact`` with its estimates.
        templates: How many prompts each template got.
        missing: What does not apply to the model, and why.
    """

    stage = "03_patching"

    effects: pd.DataFrame = table(
        "csv",
        {"component": str, "layer": int, "head": "Int64"}
        | each(float, "ablation", "ablation_low", "ablation_high")
        | each(float, "patching", "patching_low", "patching_high")
        | each(float, "by_start_low", "by_start_high")
        | {"n_ablated": int},
    )
    positions: pd.DataFrame = table("positions.csv", component=str, more=float)
    exact: pd.DataFrame = table("exact_positions.csv", component=str, more=float)
    paths: pd.DataFrame = table("paths.csv", sender=str, receiver=str, input=str, effect=float)
    ablation: np.ndarray = array()
    values: np.ndarray = array()
    patching: np.ndarray = array()
    position_spearman: float
    templates: str
    missing: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Ablate and restore every component; see the class."""
        lm, sets, everything = at.model, at.sets(), components(at.model)
        evaluator = Evaluator(lm, sets.evaluation, at.means())
        whole = evaluator.intact.logit_diff
        positive_baseline(whole, f"{lm.facts.title} on {at['task']}")
        ablated, values = single_effects(
            evaluator, everything, at["n_exact"], progress="Mean ablation"
        )  # [component, n]

        rows = range(min(at["n_pairs"], at["n_prompts"]))
        clean, corrupted = sets.evaluation[rows], sets.corrupted[rows]
        restoring = Evaluator(lm, corrupted, record(lm, clean).activations, answers=clean)
        between = whole[: len(rows)] - restoring.intact.logit_diff
        gap = positive_baseline(between, "clean minus corrupted")
        restored = restoring.differences([[c] for c in everything], progress="Activation patching")
        recovered = restored - restoring.intact.logit_diff

        shares = {"ablation": (values, whole), "patching": (recovered, between)}
        effects = _effects(everything, shares, at["seed"])
        ends = over_groups(values, whole, sets.evaluation.starts)
        effects["by_start_low"], effects["by_start_high"] = (end.numpy() for end in ends)
        effects["n_ablated"] = (~ablated.isnan()).sum(1).numpy()
        strength = effects["ablation"].abs() + effects["patching"].abs()
        top = [everything[i] for i in strength.nlargest(at["n_top"]).index]
        exact = _exact_positions(restoring, top, clean.groups(), gap)
        estimate = position_attribution(lm, clean, corrupted)
        groups = {name: mask.float().mean(0) for name, mask in clean.groups().items()}
        positions = pd.DataFrame(
            [
                {"component": str(c)}
                | {name: (estimate[c] * m).sum().item() / gap for name, m in groups.items()}
                for c in everything
            ]
        )
        both = [t.set_index("component")[list(groups)] for t in (exact, positions)]
        guess = both[1].loc[both[0].index]
        rho = spearmanr(both[0].to_numpy().ravel(), guess.to_numpy().ravel()).statistic

        heads = strength[[c.head is not None for c in everything]]
        ranked = [everything[i] for i in heads.nlargest(at["n_top"]).index]
        paths, missing = cls.empty("paths"), {}
        with section(missing, "paths"):
            paths = _paths(restoring, sorted(ranked[:N_SENDERS]), sorted(ranked), gap)
        if paths.empty:
            missing.setdefault("paths", "the strongest heads are all of one layer.")

        _check_alone(evaluator, effects, ablated, everything)
        return cls(
            effects=effects,
            positions=positions,
            exact=exact,
            paths=paths,
            ablation=(ablated / whole.mean()).numpy(),
            values=(values / whole.mean()).numpy(),
            patching=(recovered / gap).numpy(),
            position_spearman=float(rho),
            templates=at.tally(),
            missing=missing,
        )


def _effects(
    everything: Sequence[Component], shares: dict[str, tuple[torch.Tensor, torch.Tensor]], seed: int
) -> pd.DataFrame:
    """Effects as a table: changes ``[component, n]`` over what they are shares of ``[n]``."""
    table = {
        "component": list(map(str, everything)),
        "layer": [c.layer for c in everything],
        "head": pd.array([c.head for c in everything], dtype="Int64"),
    }
    for name, (change, of) in shares.items():
        mean, low, high = (v.numpy() for v in ratios(change, of, seed))
        table |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(table)


def _exact_positions(
    restoring: Evaluator, top: list[Component], groups: dict[str, torch.Tensor], gap: float
) -> pd.DataFrame:
    """Recovery from restoring each component at one group of positions only."""
    scores = restoring.differences(
        [[c] for c in top for _ in groups],
        positions=[mask for _ in top for mask in groups.values()],
        progress="By position",
    )  # [component * group, pair]
    recovery = (scores - restoring.intact.logit_diff).mean(1).reshape(len(top), -1) / gap
    table = pd.DataFrame(recovery.tolist(), columns=list(groups))
    table.insert(0, "component", list(map(str, top)))
    return table


def _paths(
    restoring: Evaluator, senders: list[Component], receivers: list[Component], gap: float
) -> pd.DataFrame:
    """Recovery from restoring one direct path at a time."""
    rows = []
    for sender in senders:
        later = [r for r in receivers if r.layer > sender.layer]
        for source in "qkv" if later else "":
            scores = path_effects(restoring, sender, later, source).logit_diff
            change = (scores - restoring.intact.logit_diff).mean(1) / gap
            for receiver, effect in zip(later, change.tolist(), strict=True):
                rows.append([str(sender), str(receiver), source, effect])
    return pd.DataFrame(rows, columns=["sender", "receiver", "input", "effect"])


def _check_alone(
    evaluator: Evaluator,
    effects: pd.DataFrame,
    ablated: torch.Tensor,
    everything: Sequence[Component],
) -> None:
    """The strongest effect on the first prompt must not depend on what shared its batch."""
    strongest = everything[int(effects["ablation"].argmin())]
    alone = Evaluator(evaluator.model, evaluator.prompts[[0]], evaluator.replacement)
    slow = alone.differences([[strongest]])[0, 0] - evaluator.intact.logit_diff[0]
    fast = ablated[everything.index(strongest), 0]
    assert torch.isclose(slow, fast, atol=1e-3), f"{slow} alone, {fast} beside others"

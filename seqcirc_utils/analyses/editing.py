"""Edits of one component, what they are meant to do, and what else they break.

An edit multiplies what a component writes by a factor, at every position and on any text: 0
removes it, 0.5 damps it, 2 doubles it. It could be made in the weights as well (a head's rows of
the output projection), so it needs no prompts to take means from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import mannwhitneyu
from tqdm import tqdm
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import Activations, record
from seqcirc_utils.ablation.text import losses, record_text
from seqcirc_utils.components import Component, by_kind
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.statistics import interval, percentile_p

SHARED, OWN, MLP, UPPER = "shared head", "own head", "MLP", "upper MLP"


class Edit(NamedTuple):
    """A component, and what its write is multiplied by."""

    component: Component
    factor: float

    @property
    def name(self) -> str:
        """``remove``, ``damp``, ``keep`` or ``boost``."""
        if self.factor == 1:
            return "keep"
        return "remove" if self.factor == 0 else "damp" if self.factor < 1 else "boost"


class Pick(NamedTuple):
    """The component that stands for one part of one task's circuit, and why.

    Attributes:
        task: Whose circuit.
        part: ``shared head`` (in every task's circuit), ``own head`` (in no other), ``MLP`` or
            ``upper MLP`` (of the upper half of the layers: the lowest prepare every token).
        component: The one whose ablation costs the task most.
        effect: What its ablation changes, as a share of the task's logit difference.
    """

    task: str
    part: str
    component: Component
    effect: float


def group(component: Component, circuits: Mapping[str, set[Component]]) -> str:
    """Who holds a head: every circuit (``shared head``), one (``own head``), or ``some``."""
    holders = sum(component in circuit for circuit in circuits.values())
    return SHARED if holders == len(circuits) > 1 else OWN if holders <= 1 else "some"


def picks(
    circuits: Mapping[str, set[Component]],
    effects: Mapping[str, Mapping[Component, float]],
    n_layers: int,
) -> list[Pick]:
    """For each task the shared head, own head, MLP and upper MLP whose ablation costs it most.

    Args:
        circuits: Task to circuit.
        effects: Task to what ablating each component changes (negative: it costs).
        n_layers: Layers of the model; upper MLPs are those of the upper half.

    Returns:
        The picks; a part of which no component costs anything is left out.
    """
    found = []
    for task, circuit in circuits.items():
        heads, mlps = (sorted(part) for part in by_kind(circuit).values())
        parts = {
            SHARED: [c for c in heads if group(c, circuits) == SHARED],
            OWN: [c for c in heads if group(c, circuits) == OWN],
            MLP: mlps,
            UPPER: [c for c in mlps if c.layer >= n_layers / 2],
        }
        for part, inside in parts.items():
            best = min(inside, key=effects[task].__getitem__, default=None)
            if best is not None and effects[task][best] < 0:
                found.append(Pick(task, part, best, float(effects[task][best])))
    return found


def random_components(
    chosen: Sequence[Component], n_layers: int, n_heads: int, draws: int, seed: int = 0
) -> list[Component]:
    """Random components to compare edits with, at most ``draws`` heads and ``draws`` MLPs.

    Heads come from the layers of the chosen heads. MLPs come from everywhere, since a layer has
    only one. None is drawn twice, and the chosen ones may be drawn, which makes p-values larger,
    never smaller.
    """
    layers = sorted({c.layer for c in chosen if c.head is not None})
    heads = [Component(layer, head) for layer in layers for head in range(n_heads)]
    mlps = [Component(layer, None) for layer in range(n_layers)]
    found = []
    for name, kind in (("heads", heads), ("MLPs", mlps)):
        if any((c.head is None) == (name == "MLPs") for c in chosen):
            order = torch.randperm(len(kind), generator=derive_generator(seed, "edits", name))
            found += [kind[i] for i in order[:draws].tolist()]
    return found


def under(
    own: Activations,
    edits: Sequence[Edit],
    ablated: Callable[[Activations, list[list[Component]]], Any],
    progress: str | None = None,
) -> dict[Edit, Any]:
    """What is found under each edit by itself.

    Nothing upstream of an edited component changes, so its new write is a multiple of the old one:
    a replacement, of which only the layers above are run again.

    Args:
        own: What the components write.
        edits: The edits.
        ablated: From a replacement and sets of components to what is found for each set.
        progress: Label of a progress bar.
    """
    factors = sorted({edit.factor for edit in edits})
    found = {}
    for factor in tqdm(factors, progress, unit="factor", disable=progress is None):
        same = [edit for edit in dict.fromkeys(edits) if edit.factor == factor]
        values = ablated(own * factor, [[edit.component] for edit in same])
        found |= {edit: values[i] for i, edit in enumerate(same)}
    return found


class Measured(NamedTuple):
    """One target of edits: its score before, and after each edit.

    Attributes:
        before: Logit difference per prompt, or loss per piece of text (nats per token) ``[n]``.
        after: Edit to the same ``[m]``; matched edits may be measured on the first m prompts only.
        right_before: Whether the answer was on top ``[n]``; empty for text.
        right_after: Edit to the same ``[m]``; empty for text.
    """

    before: torch.Tensor
    after: dict[Edit, torch.Tensor]
    right_before: torch.Tensor
    right_after: dict[Edit, torch.Tensor]

    @classmethod
    def prompts(
        cls, model: Model, prompts: Prompts, edits: Iterable[Edit], progress: str | None = None
    ) -> "Measured":
        """Measure prompts."""
        # Edits make replacements of their own; the prompts' own activations only fill the place.
        run = record(model, prompts)
        evaluator = Evaluator(model, prompts, run.activations, run=run)
        found = under(
            run.activations,
            list(edits),
            lambda new, sets: evaluator.with_(replacement=new).replaced(sets),
            progress,
        )
        intact = evaluator.intact
        after = {edit: value.logit_diff for edit, value in found.items()}
        right = {edit: value.correct for edit, value in found.items()}
        return cls(intact.logit_diff, after, intact.correct, right)

    @classmethod
    def text(
        cls, model: Model, tokens: torch.Tensor, edits: Iterable[Edit], progress: str | None = None
    ) -> "Measured":
        """Measure the loss on text ``[n, pos]``."""
        run = record_text(model, tokens)
        (before,) = losses(run, tokens, [[]], run.activations)
        found = under(
            run.activations,
            list(edits),
            lambda new, sets: losses(run, tokens, sets, new),
            progress,
        )
        return cls(before, found, torch.empty(0), {})

    def with_random(self, random: "Measured") -> "Measured":
        """Add matched edits measured on the first prompts; edits known already stay as they are."""
        return self._replace(
            after=random.after | self.after, right_after=random.right_after | self.right_after
        )

    def change(self, edit: Edit, m: int | None = None) -> torch.Tensor:
        """After minus before, on the first ``m`` prompts (or all that were measured)."""
        after = self.after[edit][:m]
        return after - self.before[: len(after)]


def edit_table(
    chosen: Sequence[Pick],
    factors: Sequence[float],
    random: Sequence[Component],
    targets: Mapping[str, Measured],
    seed: int = 0,
) -> pd.DataFrame:
    """Every edit of every pick, on every target.

    Args:
        chosen: What is edited.
        factors: What writes are multiplied by.
        random: Components of the matched edits (see :func:`random_components`).
        targets: Target to its measurements, which hold all these edits.
        seed: Of the bootstrap.

    Returns:
        One row per edit and target. Scores are logit differences, or nats per token for text, where
        a positive change is the damage. ``low`` and ``high`` bound the mean change (95%, over
        prompts). ``random_mean`` is the mean change by the same factor on matched components of the
        same kind, ``p`` the share of those that move the same prompts at least as far, either way.
    """
    rows = []
    for task, part, component, _ in chosen:
        like = [c for c in random if (c.head is None) == (component.head is None)]
        for factor in factors:
            edit = Edit(component, factor)
            for target, found in targets.items():
                change = interval(found.change(edit), seed)
                random_edits = [Edit(c, factor) for c in like]
                m = min((len(found.after[e]) for e in random_edits), default=None)
                null = [found.change(e, m).mean().item() for e in random_edits]
                same = found.change(edit, m).mean().abs().item()  # on the null's prompts
                right = found.right_before, found.right_after.get(edit, torch.empty(0))
                accuracy = [r.double().mean().item() for r in right]
                rows.append(
                    {
                        "edit": edit.name,
                        "part": part,
                        "component": str(component),
                        "factor": factor,
                        "edited_task": task,
                        "target": target,
                        "score_before": found.before.mean().item(),
                        "score_after": found.after[edit].mean().item(),
                        "change": change.mean,
                        "low": change.low,
                        "high": change.high,
                        "random_mean": float(np.mean(null)) if null else np.nan,
                        "p": percentile_p(same, np.abs(null)) if null else np.nan,
                        "accuracy_before": accuracy[0],
                        "accuracy_after": accuracy[1],
                        "n": len(found.before),
                        "draws": len(null),
                    }
                )
    return pd.DataFrame(rows)


def selectivity(
    circuits: Mapping[str, set[Component]], effects: Mapping[str, pd.DataFrame], floor: float = 0
) -> pd.DataFrame:
    """What ablating each head of a circuit costs its own task, and the others.

    Args:
        circuits: Task to circuit.
        effects: Task to a table with ``component`` and, as shares of the task's logit difference,
            ``ablation`` with its interval ``ablation_high`` (negative: it costs).
        floor: Leave out heads whose cost is not above this share with its whole interval, so that
            the ratio means something.

    Returns:
        Rows of ``task``, ``component``, ``group`` (``shared head``, ``own head``, ``some``),
        ``own`` and ``others`` (cost to the task and mean cost to the others; negative: a gain) and
        ``collateral``, their ratio.
    """
    tables = {task: table.set_index("component") for task, table in effects.items()}
    rows = []
    for task, circuit in circuits.items():
        others = [tables[t]["ablation"] for t in circuits if t != task]
        for component in sorted(by_kind(circuit)["heads"]):
            name = str(component)
            if not others or not -tables[task].loc[name, "ablation_high"] > floor:
                continue
            own = -tables[task].loc[name, "ablation"]
            other = -float(np.mean([table[name] for table in others]))
            rows.append((task, name, group(component, circuits), own, other, other / own))
    columns = ["task", "component", "group", "own", "others", "collateral"]
    return pd.DataFrame(rows, columns=columns)


def safer(table: pd.DataFrame) -> tuple[float, float, float]:
    """Median collateral of shared and of own heads, and the two-sided Mann-Whitney p-value.

    Args:
        table: From :func:`selectivity`. A head counts once: its mean over tasks.

    Returns:
        The two medians and p; NaN where a group is empty.
    """
    by_head = table.groupby(["group", "component"])["collateral"].mean().reset_index()
    sides = [by_head.loc[by_head["group"] == name, "collateral"] for name in (SHARED, OWN)]
    medians = [float(side.median()) if len(side) else np.nan for side in sides]
    p = float(mannwhitneyu(*sides).pvalue) if all(len(side) for side in sides) else np.nan
    return medians[0], medians[1], p

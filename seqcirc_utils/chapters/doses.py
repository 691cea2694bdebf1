"""Damage by dose: a task without its strongest heads, few to many, and without other tasks'.

Heads only: a layer has but one MLP, so random sets of the same layers would hold the same MLPs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.analyses import specificity
from seqcirc_utils.chapters.findings import each
from seqcirc_utils.chapters.ranked_tasks import KINDS, OUTSIDE, SEQUENCES, TITLES, Tried, lost
from seqcirc_utils.circuits.chance import random_like
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import CannotDo, section
from seqcirc_utils.statistics import positive_baseline

WANTED = 0.5
"""The own damage at which own and others' are compared: far from nothing and from everything."""

RANDOM = "random"
CIRCUIT = "circuit"
BY_SETS, BY_TASKS = "sets", "tasks"
"""What is compared with a task's own heads on it: other heads on it, or its heads elsewhere."""

_INTERVAL = each(float, "mean", "low", "high")
CHOICE = {"dose": int, "task": str, "damage": float}
DAMAGE = {"dose": int} | each(str, "set", "kind", "task") | _INTERVAL
HEADS = {"task": str, "place": int, "head": str}
INDEX = {"dose": int} | each(str, "by", "kind", "set", "against") | _INTERVAL
"""Columns of the tables of :class:`Doses`."""

Key = tuple[int, str, str]
"""A set of heads: dose, task that ranked, ``circuit`` or ``random``."""


@dataclass(frozen=True)
class Doses:
    """What is lost without so many heads; see the chapter's findings for the columns."""

    dose: int
    choice: pd.DataFrame
    damage: pd.DataFrame
    index: pd.DataFrame
    heads: pd.DataFrame


def measured(tried: Tried) -> Doses:
    """Choose the dose on prompts that rank; then judge, on the others, every dose.

    At every dose, the sequence tasks without each task's strongest heads, and without random ones.
    At the chosen dose, all tasks.

    Raises:
        CannotDo: where no sequence task has something to lose on the prompts that rank.
    """
    heads = {task: _order(tried, task) for task in tried.tasks}
    doses = numbers(tried.at["share_ablated"], len(next(iter(heads.values()))))
    choice = _choice(tried, heads, doses)
    dose = specificity.nearest(choice.groupby("dose")["damage"].mean().to_dict(), WANTED)
    sets = _sets(tried, heads, doses)
    damage, values, places = _judged(tried, sets, dose)
    index = _index(tried, doses, dose, values, places)
    rows = [
        [task, place, str(head)]
        for task, order in heads.items()
        for place, head in enumerate(order[: doses[-1]], start=1)
    ]
    return Doses(dose, choice, damage, index, pd.DataFrame(rows, columns=list(HEADS)))


def numbers(share: float, heads: int) -> list[int]:
    """How many heads are tried: 1, 2, 4, … below a share of all, and that share."""
    most = max(1, round(share * heads))
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]


def _order(tried: Tried, task: str) -> list[Component]:
    """All heads, the strongest on the prompts that rank first; ties by the model's order."""
    means = tried.tasks[task].own.mean(1)
    names = components(tried.at.model)
    ranked = (names[i] for i in np.argsort(-means, kind="stable"))
    return [c for c in ranked if c.head is not None]


def _choice(
    tried: Tried, heads: Mapping[str, Sequence[Component]], doses: Sequence[int]
) -> pd.DataFrame:
    """Each sequence task's own damage on the prompts that ranked its heads: none that judges."""
    rows, without = [], {}
    for task in tried.of(SEQUENCES):
        one = tried.tasks[task]
        with section(without, TITLES.get(task, task)):
            evaluator = Evaluator(tried.at.model, one.ranking, one.judge.replacement)
            positive_baseline(evaluator.intact.logit_diff, f"the prompts that rank for {task}")
            damage = lost(evaluator, [heads[task][:dose] for dose in doses]).mean(1)
            damage /= evaluator.intact.logit_diff.mean()
            rows += [[dose, task, x] for dose, x in zip(doses, damage.tolist(), strict=True)]
    tried.left_out.update({f"{name}, choice of the dose": why for name, why in without.items()})
    if not rows:
        raise CannotDo("no sequence task has something to lose on the prompts that rank.")
    return pd.DataFrame(rows, columns=list(CHOICE))


def _sets(
    tried: Tried, heads: Mapping[str, Sequence[Component]], doses: Sequence[int]
) -> dict[Key, list[list[Component]]]:
    """Every set of heads, a random one as several draws."""
    at = tried.at
    everything = [c for c in components(at.model) if c.head is not None]
    sets: dict[Key, list[list[Component]]] = {}
    for dose in doses:
        for task, order in heads.items():
            own = list(order[:dose])
            sets[dose, task, CIRCUIT] = [own]
            if tried.tasks[task].kind == SEQUENCES and at["n_specific_random"]:
                sets[dose, task, RANDOM] = random_like(
                    own, everything, at["n_specific_random"], at["seed"], by_layer=True
                )
    return sets


def _judged(
    tried: Tried, sets: Mapping[Key, list[list[Component]]], chosen: int
) -> tuple[pd.DataFrame, dict[str, np.ndarray], dict[str, dict[Key, int]]]:
    """What each set's loss costs each task, as far as it is asked.

    Returns:
        A row per set and task; task to values ``[set, n]``; task to the row of each set in them.
    """
    rows, values, places = [], {}, {}
    for task, one in tqdm(tried.tasks.items(), desc="Doses", unit="task"):
        asked = {key: draws for key, draws in sets.items() if _asked(tried, task, key, chosen)}
        values[task], bounds = one.judged(asked.values(), lost, tried.at["seed"])
        places[task] = {key: row for row, key in enumerate(asked)}
        rows += [[*key, task, *bound] for key, bound in zip(asked, bounds, strict=True)]
    return pd.DataFrame(rows, columns=list(DAMAGE)), values, places


def _asked(tried: Tried, task: str, key: Key, chosen: int) -> bool:
    """Whether a set is tried on a task: curves are of the sequence tasks, and what it costs."""
    dose, ranked, kind = key
    if dose == chosen:
        return True
    return tried.tasks[task].kind == SEQUENCES and (kind == CIRCUIT or ranked == task)


def _index(
    tried: Tried,
    doses: Sequence[int],
    chosen: int,
    values: Mapping[str, np.ndarray],
    places: Mapping[str, Mapping[Key, int]],
) -> pd.DataFrame:
    """Own minus others' damage of each task, and of the sequence tasks together."""
    rows: list[list[Any]] = []
    whole = tried.whole

    def add(dose: int, by: str, kind: str, against: str) -> None:
        single = {}
        for task in tried.tasks if dose == chosen else tried.of(SEQUENCES):
            found = _terms(tried, places, (dose, task, kind), by, against)
            if found:
                single[task] = found
        together = [single[task] for task in tried.of(SEQUENCES) if task in single]
        asked = {task: [found] for task, found in single.items()}
        asked |= {SEQUENCES: together} if together else {}
        for name, some in asked.items():
            terms = [(weight / len(some), on, at) for one in some for weight, on, at in one]
            told = specificity.combined(values, whole, terms, tried.at["seed"])
            rows.append([dose, by, kind, name, against, told.mean, told.low, told.high])

    for dose in doses:
        for against in (*KINDS, *tried.of(OUTSIDE), RANDOM):
            add(dose, BY_SETS, CIRCUIT, against)
    for kind in (CIRCUIT, RANDOM):
        for against in KINDS:
            add(chosen, BY_TASKS, kind, against)
    return pd.DataFrame(rows, columns=list(INDEX))


def _terms(
    tried: Tried,
    places: Mapping[str, Mapping[Key, int]],
    own: Key,
    by: str,
    against: str,
) -> list[tuple[float, str, int]]:
    """A set's damage to its own task minus the mean of what is compared; empty without any.

    ``against`` is a kind of task, a task, or random heads.
    """
    dose, task, kind = own
    among = tried.of(against) if against in KINDS else [against]
    others = [other for other in among if other != task]
    if by == BY_TASKS:
        compared = [(other, own) for other in others]
    elif against == RANDOM:
        compared = [(task, (dose, task, RANDOM))]
    else:
        compared = [(task, (dose, other, kind)) for other in others]
    compared = [(where, key) for where, key in compared if key in places.get(where, ())]
    if own not in places[task] or not compared:
        return []
    rest = [(-1 / len(compared), where, places[where][key]) for where, key in compared]
    return [(1.0, task, places[task][own]), *rest]

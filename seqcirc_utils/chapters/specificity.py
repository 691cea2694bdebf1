"""What is specific to sequences in the circuits, what every task uses, and what is the sentence's.

All circuits are the strongest components by one gradient method, as many for each task. They are
found on some prompts and judged on others, with means of a third set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

import numpy as np
import pandas as pd
from tqdm import tqdm

from seqcirc_utils.analyses import specificity
from seqcirc_utils.chapters import doses
from seqcirc_utils.chapters.findings import Findings, each, table
from seqcirc_utils.chapters.ranked_tasks import (
    KINDS,
    OUTSIDE,
    SEQUENCES,
    Score,
    Tried,
    compare,
    left,
    lost,
)
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits.chance import random_like
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import section
from seqcirc_utils.statistics import intervals, rate

_INTERVAL = each(float, "mean", "low", "high")


@dataclass(frozen=True, kw_only=True)
class Specificity(Findings):
    """What each task's circuit does for the others, and how far rankings agree.

    Damage is the share of the whole model's mean logit difference that is lost, what is kept the
    share that is left, both under mean ablation on prompts that no ranking saw. Intervals are 95%,
    over prompts; of overlaps the middle 95% of repeats.

    Attributes:
        tasks: A row per task: its mean logit difference, the shares of prompts where the answer is
            ``preferred`` to the wrong one, and on top of all tokens (``accuracy``).
        damage: Without the ``n_ablated`` strongest of a task (``circuit``), random heads of the
            same layers and the same MLPs (``random``, mean over draws), or a ``part`` of what the
            sequence tasks' circuits share.
        kept: With nothing but the ``n_kept`` strongest of a task.
        index: A set's own damage (or what it keeps) minus the mean over the tasks of a kind;
            ``set`` is ``sequences`` for the mean over these tasks' circuits.
        dose_choice: What the loss of its strongest heads, by their number (``dose``), costs each
            sequence task on the prompts that ranked them; these choose ``dose`` and judge nothing.
        dosed: On the prompts that judge, without so many heads: the strongest of a task (``set``,
            ``circuit``) or random ones of the same layers (``random``, mean over draws). Sequence
            tasks at every dose, all tasks at the chosen one.
        dose_index: What its own heads' loss costs a task minus, ``by`` ``sets``, what the loss of
            as many of other tasks' heads costs it (``against`` the tasks of a kind, each outside
            task, or ``random``); ``by`` ``tasks``, what its heads' loss costs other tasks. ``set``
            as in ``index``.
        dose_heads: Each task's strongest heads, the strongest in the first ``place``.
        dose: The number of heads at which own and others' damage are compared: where the sequence
            tasks' mean damage in ``dose_choice`` is nearest to half.
        overlap: Jaccard of circuits found on half of the prompts of each of two tasks, by ``kind``
            of pair: ``halves`` of one task in one sentence, ``sentences`` of one task, two
            ``sequences`` in one sentence or in ``another sentence``, a sequence with ``repeat``,
            with ``shuffled`` or with ``outside`` tasks, and two sequences in the model with
            ``shuffled weights`` (``halves, shuffled weights``: one).
        parts: The components in all sequence tasks' circuits, each with its part.
        part_damage: Mean over the tasks of a kind (``to``) of the damage without a part, or without
            random heads of the same layers and its MLPs.
        inclusion: How often a component is in its task's circuit when prompts and sentences are
            resampled, of those that ever are, with the class.
        stability: By task, the pairwise Jaccard of those circuits, and counts of the classes.
        expected: How many of the shared components would be in each part if the other circuits
            were random.
        chance: Jaccard of random circuits.
        n_ablated: Components in an ablated circuit.
        n_kept: Components in a kept one, and behind overlaps and parts.
        n_components: All there are.
        n_held: Prompts of a task that judge.
        n_ranked: Prompts of a task, and sentence, that rank.
        n_repeats: Resamples behind overlaps and frequencies.
        title: The model's title.
        left_out: Tasks and sentences that are not compared, and why.
        missing: Sections that do not apply, and why.
    """

    stage = "12_specificity"

    tasks: pd.DataFrame = table(
        "tasks.csv",
        {"task": str, "kind": str} | _INTERVAL,
        preferred=float,
        accuracy=float,
    )
    damage: pd.DataFrame = table(
        "damage.csv", {"set": str, "kind": str, "size": int, "task": str} | _INTERVAL
    )
    kept: pd.DataFrame = table(
        "kept.csv", {"set": str, "kind": str, "size": int, "task": str} | _INTERVAL
    )
    index: pd.DataFrame = table(
        "index.csv", each(str, "measure", "kind", "set", "against") | _INTERVAL
    )
    dose_choice: pd.DataFrame = table("dose_choice.csv", doses.CHOICE)
    dosed: pd.DataFrame = table("doses.csv", doses.DAMAGE)
    dose_index: pd.DataFrame = table("dose_index.csv", doses.INDEX)
    dose_heads: pd.DataFrame = table("dose_heads.csv", doses.HEADS)
    dose: int
    overlap: pd.DataFrame = table("overlap.csv", each(str, "kind", "first", "second") | _INTERVAL)
    parts: pd.DataFrame = table("parts.csv", component=str, part=str)
    part_damage: pd.DataFrame = table("part_damage.csv", each(str, "set", "kind", "to") | _INTERVAL)
    inclusion: pd.DataFrame = table(
        "inclusion.csv",
        each(str, "task", "component") | each(float, "share", "low", "high"),
        verdict=str,
    )
    stability: pd.DataFrame = table(
        "stability.csv", {"task": str} | _INTERVAL | dict.fromkeys(("in", "uncertain"), int)
    )
    expected: dict[str, float]
    chance: float
    n_ablated: int
    n_kept: int
    n_components: int
    n_held: int
    n_ranked: int
    n_repeats: int
    title: str
    left_out: dict[str, str]
    missing: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Rank, ablate, keep and compare; see the class.

        Raises:
            CannotDo: with fewer than two sequence tasks that the model can do.
        """
        lm, total = at.model, len(components(at.model))
        tried = compare(at)
        sizes = [max(1, round(at[name] * total)) for name in ("share_ablated", "share_kept")]
        circuits = {
            task: [specificity.strongest(one.own, size) for size in sizes]
            for task, one in tried.tasks.items()
        }
        kept = {task: both[1] for task, both in circuits.items()}
        shared, expected = _parts(tried, kept)
        damage, values = _damage(tried, {t: both[0] for t, both in circuits.items()}, shared)
        left, shares = _kept(tried, kept)
        index = pd.DataFrame(
            [*_index(tried, "damage", damage, values), *_index(tried, "kept", left, shares)],
            columns=cls.empty("index").columns,
        )
        inclusion, stability = _stability(tried, sizes[1])
        dosed = _dosed(tried)
        return cls(
            tasks=_scores(tried),
            damage=damage,
            kept=left,
            index=index,
            dose_choice=dosed.choice,
            dosed=dosed.damage,
            dose_index=dosed.index,
            dose_heads=dosed.heads,
            dose=dosed.dose,
            overlap=_overlap(tried, sizes[1]),
            parts=shared,
            part_damage=_part_damage(tried, damage, values),
            inclusion=inclusion,
            stability=stability,
            expected=expected,
            chance=specificity.chance(sizes[1], total),
            n_ablated=sizes[0],
            n_kept=sizes[1],
            n_components=total,
            n_held=at["n_held"],
            n_ranked=at["n_ranked"],
            n_repeats=at["n_resampled"],
            title=lm.facts.title,
            left_out=tried.left_out,
            missing=tried.missing,
        )


def _scores(tried: Tried) -> pd.DataFrame:
    """How well the whole model does each task, on the held-out prompts."""
    rows = []
    for task, one in tried.tasks.items():
        intact = one.judge.intact
        values = [v.item() for v in intervals(intact.logit_diff[None], tried.at["seed"])]
        preferred = (intact.logit_diff > 0).float().mean().item()
        rows.append([task, one.kind, *values, preferred, rate(intact.correct).mean])
    return pd.DataFrame(rows, columns=Specificity.empty("tasks").columns)


def _names(at: Setting, chosen: np.ndarray) -> list[Component]:
    return [c for c, inside in zip(components(at.model), chosen, strict=True) if inside]


def _parts(
    tried: Tried, circuits: Mapping[str, np.ndarray]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The shared components, each with its part, and how many chance would put in each."""
    found = {kind: [circuits[task] for task in tried.of(kind)] for kind in KINDS}
    if not found[OUTSIDE]:
        tried.missing["parts"] = "no outside task is left to compare with."
        return Specificity.empty("parts"), {}
    which, expected = specificity.shared_parts(*found.values())
    names = map(str, components(tried.at.model))
    rows = [[name, part] for name, part in zip(names, which, strict=True) if part]
    return pd.DataFrame(rows, columns=["component", "part"]), expected


def _damage(
    tried: Tried, circuits: Mapping[str, np.ndarray], shared: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """What each set's loss costs each task, and the values by prompt."""
    at, everything = tried.at, components(tried.at.model)
    sets = {(task, "circuit"): [_names(at, chosen)] for task, chosen in circuits.items()}
    parts = {"shared": list(shared["component"])}
    parts |= {name: list(some["component"]) for name, some in shared.groupby("part")}
    sets |= {(k, "part"): [list(map(Component.parse, p))] for k, p in parts.items() if p}
    for (name, _), (own,) in list(sets.items()):
        draws = random_like(own, everything, at["n_specific_random"], at["seed"], by_layer=True)
        if draws:
            sets[name, "random"] = draws

    return _judged(tried, sets, lost, "Damage")


def _kept(
    tried: Tried, circuits: Mapping[str, np.ndarray]
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """What each circuit keeps of each task, and the values by prompt."""
    sets = {(task, "circuit"): [_names(tried.at, chosen)] for task, chosen in circuits.items()}
    return _judged(tried, sets, left, "Kept")


def _judged(
    tried: Tried, sets: Mapping[tuple[str, str], list[list[Component]]], score: Score, what: str
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Each set's share of each task; several draws of a set count by their mean.

    Returns:
        A row per set and task, and task to scores ``[set, n]``, in logits.
    """
    by_task, rows = {}, []
    for task, one in tqdm(tried.tasks.items(), desc=what, unit="task"):
        by_task[task], bounds = one.judged(sets.values(), score, tried.at["seed"])
        for ((name, kind), draws), bound in zip(sets.items(), bounds, strict=True):
            rows.append([name, kind, len(draws[0]), task, *bound])
    return pd.DataFrame(rows, columns=Specificity.empty("damage").columns), by_task


def _index(
    tried: Tried, measure: str, judged: pd.DataFrame, values: Mapping[str, np.ndarray]
) -> list[list[Any]]:
    """Own minus others' values of each set of a task, and of the sequence tasks' sets together."""
    places, rows, whole = _places(judged), [], tried.whole
    for kind in ("circuit", "random"):
        for against in KINDS:
            triples = {}
            for task in tried.tasks:
                others = [other for other in tried.of(against) if other != task]
                if others and (task, kind) in places:
                    triples[task] = places[task, kind], task, others
            together = [triples[task] for task in tried.of(SEQUENCES) if task in triples]
            asked = {task: [triple] for task, triple in triples.items()}
            asked |= {SEQUENCES: together} if together else {}
            for name, some in asked.items():
                found = specificity.contrast(values, whole, some, tried.at["seed"])
                rows.append([measure, kind, name, against, found.mean, found.low, found.high])
    return rows


def _places(judged: pd.DataFrame) -> dict[tuple[str, str], int]:
    """The row of each set among its scores."""
    names = judged[["set", "kind"]].drop_duplicates().itertuples(index=False)
    return {(name, kind): row for row, (name, kind) in enumerate(names)}


def _part_damage(
    tried: Tried, judged: pd.DataFrame, values: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """What the loss of each part costs each kind of task."""
    rows = []
    for (name, kind), row in _places(judged).items():
        for to in KINDS if name in ("shared", *specificity.PARTS) else ():
            tasks = tried.of(to)
            terms = [(1 / len(tasks), task, row) for task in tasks]
            if terms:
                found = specificity.combined(values, tried.whole, terms, tried.at["seed"])
                rows.append([name, kind, to, found.mean, found.low, found.high])
    return pd.DataFrame(rows, columns=Specificity.empty("part_damage").columns)


def _dosed(tried: Tried) -> doses.Doses:
    """Damage by dose; empty tables, and no dose (0), where none can be chosen."""
    with section(tried.missing, "doses"):
        return doses.measured(tried)
    return doses.Doses(
        0, *map(Specificity.empty, ("dose_choice", "dosed", "dose_index", "dose_heads"))
    )


def _overlap(tried: Tried, size: int) -> pd.DataFrame:
    """Overlaps of circuits found on halves of the prompts, by kind of pair."""
    at, rows = tried.at, []
    sequences = tried.of(SEQUENCES)

    def add(kind: str, first: str, second: str, a: np.ndarray, b: np.ndarray | None) -> None:
        found = specificity.split_overlaps(a, b, size, at["n_resampled"], at["seed"])
        rows.append([kind, first, second, *vars(specificity.middle(found)).values()])

    own = {task: one.own for task, one in tried.tasks.items()}
    for task in sequences:
        add("halves", task, task, own[task], None)
        for template, more in tried.tasks[task].more.items():
            add("sentences", task, f"{task}, {template}", own[task], more)
        for other in (t for t in own if t not in sequences):
            add(tried.tasks[other].kind, task, other, own[task], own[other])
        for other, scores in tried.nulls.get("shuffled", {}).items():
            if other == task:
                add("shuffled", task, "shuffled", own[task], scores)
    untrained = tried.nulls.get("shuffled weights", {})
    for task, scores in untrained.items():
        add("halves, shuffled weights", task, task, scores, None)
    for first, second in combinations(sequences, 2):
        add("sequences", first, second, own[first], own[second])
        for template, more in tried.tasks[second].more.items():
            add("another sentence", first, f"{second}, {template}", own[first], more)
        if untrained:
            add("shuffled weights", first, second, untrained[first], untrained[second])
    return pd.DataFrame(rows, columns=Specificity.empty("overlap").columns)


def _stability(tried: Tried, size: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Circuits on resampled prompts of all sentences: how often each component is in them."""
    at, names = tried.at, list(map(str, components(tried.at.model)))
    members, rows = [], []
    for task, one in tried.tasks.items():
        scores = np.concatenate([one.own, *one.more.values()], axis=1)
        found = specificity.resampled(scores, size, at["n_resampled"], at["seed"])
        frame, row = specificity.stability(found, names)
        members.append(frame.assign(task=task))
        rows.append({"task": task} | row)
    return pd.concat(members)[list(Specificity.empty("inclusion"))], pd.DataFrame(rows)

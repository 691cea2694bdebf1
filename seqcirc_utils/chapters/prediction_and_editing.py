"""Whether knowing a circuit helps: to predict what the model says, and to edit what it does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import pandas as pd
import torch

from seqcirc_utils.analyses import editing, prediction
from seqcirc_utils.analyses.editing import Edit, Measured
from seqcirc_utils.chapters.circuit_discovery import CircuitDiscovery
from seqcirc_utils.chapters.findings import Findings, each, table
from seqcirc_utils.chapters.patching import Patching
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits.chance import random_like
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import section
from seqcirc_utils.prompts import controls
from seqcirc_utils.prompts.drawing import clean_prompts
from seqcirc_utils.prompts.plain_text import text_chunks
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.scores import score
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.prompts.vocabulary import vocabulary
from seqcirc_utils.statistics import positive_baseline

MAX_CELL = 16
"""Prompts to predict on, per template and length, at most."""


@dataclass(frozen=True, kw_only=True)
class PredictionAndEditing(Findings):
    """How far circuits alone say what the model says, and what scaling one component does.

    Attributes:
        edits: A row per edit and target (see :func:`editing.edit_table`): logit differences, or
            nats per token for text; means over prompts with 95% intervals.
        prediction: A row per task, measure and subset of the pool
            (see :func:`prediction.agreement_table`), beside random circuits.
        errors: A row per error looked into (see :func:`prediction.error_table`); logits.
        selectivity: A row per circuit's head of clear effect (see :func:`editing.selectivity`):
            costs as shares of the tasks' logit differences.
        points: A row per prompt of the pool: the logit difference of the whole model and of the
            circuit alone, and whether the model is right.
        model: The model's title.
        circuit_sizes: Components of the circuit of each task that is examined.
        n_components: Components of the model.
        n_random: Random circuits, and random edits of each kind, at most.
        collateral: Median collateral of ``shared`` and of ``own`` heads, and ``p`` of their
            difference; None where there is nothing to compare.
        skipped: Tasks that are not examined (their titles), and why.
        left_out: Parts of the pool that could not be made or predicted on, and why.
        not_targets: What edits are not tried on, and why.
        missing: Sections that do not apply to the model, and why.
    """

    stage = "08_prediction_and_editing"

    edits: pd.DataFrame = table(
        "csv",
        each(str, "edit", "part", "component")
        | {"factor": float}
        | each(str, "edited_task", "target")
        | each(float, "score_before", "score_after", "change", "low", "high", "random_mean", "p")
        | each(float, "accuracy_before", "accuracy_after")
        | each(int, "n", "draws"),
    )
    prediction: pd.DataFrame = table(
        "prediction.csv",
        each(str, "task", "subset") | each(float, "agreement", "low", "high", "random_mean", "p"),
        n=int,
        measure=str,
    )
    errors: pd.DataFrame = table(
        "errors.csv",
        each(str, "task", "prompt", "answer", "said", "circuit_said")
        | {"margin": float, "component": str, "effect": float, "mended": bool},
        n_mending=int,
        in_circuit=bool,
    )
    selectivity: pd.DataFrame = table(
        "selectivity.csv",
        each(str, "task", "component", "group") | each(float, "own", "others", "collateral"),
    )
    points: pd.DataFrame = table("points.csv", task=str, whole=float, circuit=float, right=bool)
    model: str
    circuit_sizes: dict[str, int]
    n_components: int
    n_random: int
    collateral: dict[str, float | None]
    skipped: dict[str, str]
    left_out: dict[str, str]
    not_targets: dict[str, str]
    missing: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Predict with every task's circuit, and edit its strongest components."""
        tasks, skipped = _tasks(at)
        circuits = {task: known.circuit for task, known in tasks.items()}
        predicted, left_out = _predicted(at, circuits)
        edits, not_targets = _edited(at, tasks)
        selectivity = editing.selectivity(circuits, {t: k.effects for t, k in tasks.items()})
        shared, own, p = (None if x != x else x for x in editing.safer(selectivity))  # no NaN
        tables = {
            name: pd.concat(parts, ignore_index=True) if parts else cls.empty(name)
            for name, parts in predicted.items()
        }
        why = {
            "prediction": _listed(left_out),
            "edits": _listed(not_targets)
            or "ablating no component of a circuit costs its task anything.",
            "selectivity": "it takes two tasks and heads of clear effect.",
        }
        measured = {"edits": edits, "selectivity": selectivity, **tables}
        missing = {name: reason for name, reason in why.items() if measured[name].empty}
        if not tasks:
            missing = dict.fromkeys(why, "no task can be examined.")
        _check(edits, tables["prediction"])
        return cls(
            edits=edits if len(edits) else cls.empty("edits"),
            selectivity=selectivity,
            **tables,
            model=at.model.facts.title,
            circuit_sizes={task: len(circuit) for task, circuit in circuits.items()},
            n_components=len(components(at.model)),
            n_random=at["n_random"],
            collateral={"shared": shared, "own": own, "p": p},
            skipped=skipped,
            left_out=left_out,
            not_targets=not_targets,
            missing=missing,
        )


class _Known(NamedTuple):
    """A task that is examined: prompts to edit on, and what chapters 03 and 04 found."""

    prompts: Prompts
    effects: pd.DataFrame
    circuit: set[Component]


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _count(at: Setting, part: int) -> int:
    """One in ``part`` of the prompts, but two at least."""
    return max(2, at["n_prompts"] // part)


def _tasks(at: Setting) -> tuple[dict[str, _Known], dict[str, str]]:
    """The tasks that can be examined, and why others (by title) cannot."""
    tasks: dict[str, _Known] = {}
    skipped: dict[str, str] = {}
    for task in at["tasks"]:
        title = TASKS[task].title
        with section(skipped, title):
            prompts = clean_prompts(
                at.model, task, _count(at, 2), seed=at["seed"], templates=at["templates"]
            )
            positive_baseline(score(at.model, prompts).logit_diff, title)
            effects = at.read(Patching, task).effects
            circuit = at.read(CircuitDiscovery, task).circuit.components
            tasks[task] = _Known(prompts, effects, circuit)
    return tasks, skipped


def _predicted(
    at: Setting, circuits: Mapping[str, set[Component]]
) -> tuple[dict[str, list[pd.DataFrame]], dict[str, str]]:
    """The tables of every task's prediction, by name, and what is left out."""
    tables: dict[str, list[pd.DataFrame]] = {"prediction": [], "points": [], "errors": []}
    left_out: dict[str, str] = {}
    for task, circuit in circuits.items():
        title = TASKS[task].title
        with section(left_out, title):
            cells, without = prediction.pool(
                at.model,
                task,
                min(_count(at, 6), MAX_CELL),
                n_means=max(2, at["n_means"] // 2),
                templates=at["pool_templates"],
                lengths=at["lengths"],
                seed=at["seed"],
            )
            left_out |= {f"{title}, {name}": reason for name, reason in without.items()}
            found = _predicted_by(at, task, circuit, cells) if cells else {}
            for name, frame in found.items():
                if len(frame):
                    frame.insert(0, "task", task)
                    tables[name].append(frame)
    return tables, left_out


def _predicted_by(
    at: Setting, task: str, circuit: set[Component], cells: Sequence[prediction.Cell]
) -> dict[str, pd.DataFrame]:
    """What one circuit says of a pool of prompts, and what turns the model's errors."""
    model, seed = at.model, at["seed"]
    members = [i for i in vocabulary(task, model.tokenizer).ids if i is not None]
    draws = random_like(circuit, components(model), at["n_random"], seed, by_layer=True)
    said = prediction.predict(model, cells, [circuit, *draws], members, f"Prediction, {task}")
    everyone = prediction.Said.join(said)  # [whole model, circuit, random circuit …; n]
    whole, alone = everyone[0], everyone[1]
    answers = torch.cat([cell.prompts.answer_ids for cell in cells])  # [n]
    points = {
        "whole": whole.logit_diff.double(),
        "circuit": alone.logit_diff.double(),
        "right": whole.token == answers,
    }
    by_cell = [cell[0] for cell in said], [cell[1] for cell in said]
    return {
        "prediction": prediction.agreement_table(answers, whole, alone, everyone[2:], seed),
        "points": pd.DataFrame(points),
        "errors": prediction.error_table(
            model, cells, *by_cell, circuit, _count(at, 4), f"Errors, {task}"
        ),
    }


def _edited(at: Setting, tasks: Mapping[str, _Known]) -> tuple[pd.DataFrame, dict[str, str]]:
    """What every edit does to every target, and what could be no target."""
    model = at.model
    effects = {
        task: dict(zip(map(Component.parse, table["component"]), table["ablation"], strict=True))
        for task, (_, table, _) in tasks.items()
    }
    circuits = {task: known.circuit for task, known in tasks.items()}
    picks = editing.picks(circuits, effects, model.n_layers)
    if not picks:
        return pd.DataFrame(), {}
    random = editing.random_components(
        [pick.component for pick in picks],
        model.n_layers,
        model.n_heads,
        at["n_random"],
        at["seed"],
    )
    edits = [Edit(pick.component, factor) for pick in picks for factor in at["factors"]]
    random_edits = [Edit(component, factor) for component in random for factor in at["factors"]]
    titles = {task: TASKS[task].title for task in tasks} | controls.TITLES | {"text": "Text"}
    targets: dict[str, Measured] = {}
    without: dict[str, str] = {}
    for target, title in titles.items():
        with section(without, title):
            asked = tasks[target].prompts if target in tasks else _control(at, target)
            measure: Callable = Measured.text if target == "text" else Measured.prompts
            few = asked[range(min(_count(at, 8), len(asked)))]
            own = measure(model, asked, edits, f"Edits, {target}")
            null = measure(model, few, random_edits, f"Random edits, {target}")
            targets[target] = own.with_random(null)
    return editing.edit_table(picks, at["factors"], random, targets, at["seed"]), without


def _control(at: Setting, target: str) -> Prompts | torch.Tensor:
    """Prompts of a control task that the model can do, or pieces of text ``[n, pos]``.

    Raises:
        UserError: where the tokenizer cannot hold them, or the model cannot do the task.
    """
    n = _count(at, 2)
    if target == "text":
        return text_chunks(at.model)[0][:n]
    sets = controls.prompt_sets(at.model, target, n_prompts=n, n_means=1, seed=at["seed"])
    positive_baseline(score(at.model, sets.evaluation).logit_diff, controls.TITLES[target])
    return sets.evaluation


def _check(edits: pd.DataFrame, predicted: pd.DataFrame) -> None:
    """Means lie within their intervals, p-values between 0 and 1."""
    if len(edits):
        assert (edits["low"] <= edits["change"] + 1e-9).all()
        assert (edits["change"] <= edits["high"] + 1e-9).all()
        assert edits["p"].dropna().between(0, 1).all()
    assert predicted["p"].dropna().between(0, 1).all()

"""The tasks that have a circuit, and control tasks, ready to be compared."""

from dataclasses import dataclass, field

import pandas as pd

from seqcirc_utils import statistics
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import Activations, mean_activations
from seqcirc_utils.chapters.circuit_discovery import CircuitDiscovery
from seqcirc_utils.chapters.component_roles import ComponentRoles
from seqcirc_utils.chapters.patching import Patching
from seqcirc_utils.chapters.profiles import profiles
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits.circuit import Circuit
from seqcirc_utils.components import Component
from seqcirc_utils.errors import section
from seqcirc_utils.prompts import controls, sequences
from seqcirc_utils.prompts.prompts import PromptSets

TITLES = {name: task.title for name, task in sequences.TASKS.items()} | controls.TITLES
"""What headings call the tasks and the controls."""


@dataclass(frozen=True)
class Tried:
    """The tasks and controls that the model can do.

    Attributes:
        at: The setting.
        circuits: Task to its circuit.
        by_search: Task to search to what it found.
        effects: Task to the effect of ablating each component.
        roles: Task to the roles of its components.
        profiles: What was found of each task's components.
        every: Task or control to the evaluator of all its prompts.
        few: The same for a few prompts: random circuits are many.
        sets: Control to its prompts.
        left_out: What is not compared, and why.
        missing: Sections that do not apply, and why.
    """

    at: Setting
    circuits: dict[str, Circuit] = field(default_factory=dict)
    by_search: dict[str, dict[str, set[Component]]] = field(default_factory=dict)
    effects: dict[str, pd.Series] = field(default_factory=dict)
    roles: dict[str, ComponentRoles] = field(default_factory=dict)
    profiles: list[pd.DataFrame] = field(default_factory=list)
    every: dict[str, Evaluator] = field(default_factory=dict)
    few: dict[str, Evaluator] = field(default_factory=dict)
    sets: dict[str, PromptSets] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def held(self) -> dict[str, set[Component]]:
        """Task to the components of its circuit."""
        return {task: circuit.components for task, circuit in self.circuits.items()}


def _evaluators(
    at: Setting, task: str, sets: PromptSets, means: Activations
) -> tuple[Evaluator, Evaluator]:
    """Evaluators of all of a task's prompts and of a few, if the model prefers right answers."""
    every = Evaluator(at.model, sets.evaluation, means)
    statistics.positive_baseline(every.intact.logit_diff, f"the whole model on {task}")
    return every, Evaluator(at.model, sets.evaluation[few(at)], means)


def few(at: Setting) -> range:
    """The prompts that random circuits are scored on: all, or every second one of the first 8."""
    return range(0, min(at["n_prompts"], 8), 2 if at["n_prompts"] >= 8 else 1)


def compared(at: Setting) -> Tried:
    """Try each task and control; one that the model cannot do is left out, with the reason."""
    tried = Tried(at)
    for task in at["tasks"]:
        with section(tried.left_out, TITLES[task]):
            pair = _evaluators(at, task, at.sets(task), at.means(task))
            patching, found = at.read(Patching, task), at.read(CircuitDiscovery, task)
            tried.circuits[task], tried.by_search[task] = found.circuit, found.by_search
            tried.every[task], tried.few[task] = pair
            tried.effects[task] = patching.effects.set_index("component")["ablation"]
            with section(tried.missing, "roles"):
                tried.roles[task] = at.read(ComponentRoles, task)
            tried.profiles.append(profiles(task, patching, found, tried.roles.get(task)))
    for task in controls.TITLES:
        with section(tried.left_out, TITLES[task]):
            sets = controls.prompt_sets(
                at.model, task, n_prompts=at["n_prompts"], n_means=at["n_means"], seed=at["seed"]
            )
            pair = _evaluators(at, task, sets, mean_activations(at.model, sets.means))
            tried.every[task], tried.sets[task] = pair[0], sets
            with section(tried.left_out, f"{TITLES[task]}, beside random circuits"):
                whole = pair[1].intact.logit_diff
                statistics.positive_baseline(whole, f"the whole model on few prompts of {task}")
                tried.few[task] = pair[1]
    return tried

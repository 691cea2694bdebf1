"""The analysis stages: their notebooks, what each needs, and where results go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seqcirc_utils import store
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models import zoo


@dataclass(frozen=True)
class Stage:
    """One notebook.

    Attributes:
        name: The notebook's.
        per_task: Whether it runs once per task.
        needs: The stages whose results it reads.
        measured_in: The module with its findings, below the package; by default the one in
            ``chapters`` that is named as the notebook is.
        across: Whether it also reads what these stages found of other models (its parameter
            ``compare``), as far as that is there.
        beside_paper: Whether it also reads what these stages found of the paper's model, where that
            lies beside.
    """

    name: str
    per_task: bool = True
    needs: tuple[str, ...] = ()
    measured_in: str = ""
    across: bool = False
    beside_paper: bool = False

    @property
    def chapter(self) -> str:
        """The module that measures what the notebook tells, below the package."""
        return self.measured_in or f"chapters/{self.name.partition('_')[2]}.py"


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("00_ground_truth", per_task=False),
        Stage("01_task_construction"),
        Stage("02_logit_attribution"),
        Stage("03_patching"),
        Stage("04_circuit_discovery", needs=("03_patching",)),
        Stage("10_methods", needs=("03_patching", "04_circuit_discovery")),
        Stage("05_component_roles", needs=("03_patching", "04_circuit_discovery")),
        Stage(
            "06_cross_task",
            per_task=False,
            needs=("03_patching", "04_circuit_discovery", "05_component_roles"),
        ),
        Stage("07_generalisation", per_task=False, needs=("03_patching", "04_circuit_discovery")),
        Stage(
            "08_prediction_and_editing",
            per_task=False,
            needs=("03_patching", "04_circuit_discovery"),
        ),
        Stage("11_interchange", per_task=False, needs=("03_patching", "04_circuit_discovery")),
        Stage("12_specificity", per_task=False),
        Stage(
            "15_metrics",
            per_task=False,
            needs=("03_patching", "04_circuit_discovery", "05_component_roles"),
        ),
        Stage("14_explore", per_task=False, needs=("03_patching", "04_circuit_discovery")),
        Stage(
            "09_claims",
            per_task=False,
            measured_in="paper/verdicts.py",  # paper stands above chapters
            beside_paper=True,
            needs=(
                *("01_task_construction", "02_logit_attribution", "03_patching"),
                *("04_circuit_discovery", "05_component_roles", "06_cross_task"),
                *("07_generalisation", "08_prediction_and_editing"),
            ),
        ),
        Stage(
            "13_across_models",
            per_task=False,
            measured_in="paper/across_models.py",
            across=True,
            needs=(
                *("01_task_construction", "02_logit_attribution", "03_patching"),
                *("04_circuit_discovery", "05_component_roles", "06_cross_task"),
                *("07_generalisation", "08_prediction_and_editing", "09_claims", "11_interchange"),
            ),
        ),
    )
}


ACROSS = next(stage.name for stage in STAGES.values() if stage.across)
"""The stage that compares models."""


def stage_named(name: str) -> Stage:
    """Return the stage of this name.

    Raises:
        UserError: for an unknown name.
    """
    if name not in STAGES:
        raise unknown("stage", name, STAGES)
    return STAGES[name]


def notebook(stage: str) -> Path:
    """Return the path of a stage's committed notebook.

    Raises:
        UserError: for an unknown stage or a missing notebook.
    """
    path = store.ROOT / "notebooks" / f"{stage_named(stage).name}.ipynb"
    if not path.is_file():
        raise UserError(f"{stage}: its notebook {path} does not exist: restore it from git.")
    return path


def upstream(stage: str, tasks: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return the stages, with their tasks, whose results a stage of these tasks reads."""
    return [
        (need, task)
        for need in STAGES[stage].needs
        for task in (tasks if STAGES[need].per_task else [None])
    ]


def threads(stage: Stage, cores: int) -> int:
    """How many threads a job of a stage gets where so many cores may be used.

    Two jobs side by side do more than one with two threads. With many cores there are too few jobs:
    those that much waits for, and those that work through all tasks, get more. The built models are
    too small for that.
    """
    waiting = sum(stage.name in other.needs for other in STAGES.values())
    alone = not stage.per_task and stage.needs
    return max(1, min(4, cores // 3)) if alone or waiting > 3 else 1


def directory(results: str, model: str, task: str | None = None) -> Path:
    """Return where results live: ``<results>/<model>/<task>``, without a task one level up.

    Raises:
        UserError: for an unknown model.
    """
    base = store.ROOT / results / zoo.slug(model)
    return base / task if task else base

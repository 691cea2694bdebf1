"""Tasks to compare, ranked alike: sequences, the same sentences without one, outside tasks, nulls.

Every task has prompts that rank components and others that judge them, and means of a third set.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import mean_activations
from seqcirc_utils.analyses.shuffling import shuffled_weights
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component
from seqcirc_utils.errors import CannotDo, section
from seqcirc_utils.methods.registry import by_prompt
from seqcirc_utils.prompts import drawing, outside
from seqcirc_utils.prompts.prompts import Prompts, PromptSets
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.statistics import positive_baseline, ratios

Score = Callable[[Evaluator, Sequence[Sequence[Component]]], torch.Tensor]

SEQUENCES, REPEAT, OUTSIDE = "sequences", "repeat", "outside"
"""Kinds of task: those of the book, the same sentences without a sequence, and what shares neither
words nor sentences with them."""

KINDS = (SEQUENCES, REPEAT, OUTSIDE)
TITLES = {name: task.title for name, task in TASKS.items()} | outside.TITLES


@dataclass
class Task:
    """A task that the model can do.

    Attributes:
        kind: One of :data:`KINDS`.
        judge: The held-out prompts, with means.
        ranking: The prompts that rank, in the run's own sentences.
        own: Scores ``[component, n]`` on them.
        more: The same for prompts in each further sentence.
    """

    kind: str
    judge: Evaluator
    ranking: Prompts
    own: np.ndarray
    more: dict[str, np.ndarray] = field(default_factory=dict)

    def judged(
        self, sets: Iterable[Sequence[Sequence[Component]]], score: Score, seed: int
    ) -> tuple[np.ndarray, list[tuple[float, float, float]]]:
        """Score sets on the held-out prompts; several draws of a set count by their mean.

        Args:
            sets: The draws of each set.
            score: Gives scores ``[draw, n]`` on the judge, in logits.
            seed: Resamples the prompts.

        Returns:
            Scores ``[set, n]``, and each set's share of the whole model's mean logit difference
            with its 95% interval.
        """
        sets = list(sets)
        flat = [draw for draws in sets for draw in draws]
        parts = score(self.judge, flat).split([len(draws) for draws in sets])
        found = torch.stack([part.mean(0) for part in parts])  # [set, n]
        shares = ratios(found, self.judge.intact.logit_diff, seed)
        bounds = list(zip(*(v.tolist() for v in shares), strict=True))
        return found.double().numpy(), bounds


def lost(judge: Evaluator, sets: Sequence[Sequence[Component]]) -> torch.Tensor:
    """What each set's loss costs of the logit difference ``[set, n]``."""
    return judge.intact.logit_diff - judge.differences(sets)


def left(judge: Evaluator, sets: Sequence[Sequence[Component]]) -> torch.Tensor:
    """What is left of the logit difference with nothing but each set ``[set, n]``."""
    return judge.differences(judge.outside(sets))


@dataclass
class Tried:
    """All tasks, and the scores of what has no circuit.

    Attributes:
        at: The setting.
        tasks: By name.
        nulls: Scores of ``shuffled`` members, and of sequence tasks under ``shuffled weights``.
        left_out: What is not compared, and why.
        missing: Sections that do not apply, and why.
    """

    at: Setting
    tasks: dict[str, Task] = field(default_factory=dict)
    nulls: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> dict[str, np.ndarray]:
        """Task to the whole model's logit differences ``[n]`` on the prompts that judge."""
        intact = {task: one.judge.intact.logit_diff for task, one in self.tasks.items()}
        return {task: scores.double().numpy() for task, scores in intact.items()}

    def of(self, kind: str) -> list[str]:
        """The tasks of a kind."""
        return [task for task, one in self.tasks.items() if one.kind == kind]


def _drawn(at: Setting, task: str, kind: str, n: int, templates: list[str]) -> PromptSets:
    """Paired prompts of a task: the first judge, the others rank."""
    counts = {"n_prompts": n, "n_means": at["n_means"], "n_discovery": 1, "seed": at["seed"]}
    if kind == SEQUENCES:
        return drawing.prompt_sets(at.model, task, templates=templates, **counts)
    return outside.prompt_sets(at.model, task, of=at["tasks"][-1], templates=templates, **counts)


def _ranked(at: Setting, sets: PromptSets, first: int) -> np.ndarray:
    """Scores ``[component, n]`` on the prompts from the given one on."""
    rows = range(first, len(sets.evaluation))
    options = {"method": at["ranking"], "n_steps": at["n_rank_steps"]}
    return by_prompt(at.model, sets.evaluation[rows], sets.corrupted[rows], **options)


def compare(at: Setting) -> Tried:
    """Try each task; what the model cannot do is left out, with the reason."""
    tried, held = Tried(at), at["n_held"]
    n = held + at["n_ranked"]
    kinds = dict.fromkeys(at["tasks"], SEQUENCES) | {"repeat": REPEAT}
    kinds |= dict.fromkeys(outside.OUTSIDE, OUTSIDE)
    ranked: dict[str, PromptSets] = {}
    for task, kind in tqdm(kinds.items(), desc="Tasks", unit="task"):
        with section(tried.left_out, TITLES[task]):
            sets = _drawn(at, task, kind, n, at["templates"])
            means = mean_activations(at.model, sets.means)
            judge = Evaluator(at.model, sets.evaluation[range(held)], means)
            positive_baseline(judge.intact.logit_diff, f"{at.model.facts.title} on {task}")
            ranking = sets.evaluation[range(held, n)]
            tried.tasks[task] = Task(kind, judge, ranking, _ranked(at, sets, held))
            ranked[task] = sets
    if len(tried.of(SEQUENCES)) < 2:
        raise CannotDo("Fewer than two sequence tasks can be done: nothing is shared by tasks.")
    for task in tried.of(SEQUENCES):
        for template in at["more_templates"]:
            with section(tried.left_out, f"{TITLES[task]}, sentence “{template}”"):
                sets = _drawn(at, task, SEQUENCES, at["n_ranked"], [template])
                tried.tasks[task].more[template] = _ranked(at, sets, 0)
    with section(tried.left_out, "Shuffled members"):
        sets = _drawn(at, "shuffled", REPEAT, at["n_ranked"], at["templates"])
        tried.nulls["shuffled"] = {at["tasks"][-1]: _ranked(at, sets, 0)}
    with (
        section(tried.left_out, "Shuffled weights"),
        shuffled_weights(at.model, at["seed"]),
    ):
        tried.nulls["shuffled weights"] = {
            task: _ranked(at, ranked[task], held) for task in tried.of(SEQUENCES)
        }
    return tried

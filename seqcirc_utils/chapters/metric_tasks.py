"""Tasks as four metrics see them: how each ranks components, and the circuits that each finds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from seqcirc_utils.ablation.evaluator import Evaluator, Metric, logit_difference
from seqcirc_utils.ablation.metrics import answer_log_prob, answer_over, minus_kl
from seqcirc_utils.ablation.pruning import Pruning
from seqcirc_utils.ablation.replay import mean_activations
from seqcirc_utils.analyses import specificity
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits import search
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import CannotDo, section
from seqcirc_utils.methods.registry import by_prompt
from seqcirc_utils.prompts import drawing
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.prompts.vocabulary import vocabulary
from seqcirc_utils.statistics import positive_baseline

DIFFERENCE, LOG_PROB, LEAD, KL = METRICS = (
    "logit difference",
    "log probability",
    "lead over members",
    "minus KL",
)
RANKED, SEARCHED = WAYS = "ranked", "searched"
"""How a circuit is found: the strongest of a ranking, all circuits of one size; or searched until
nothing can go, so that its size is a result."""

Found = Mapping[tuple[str, str], set[Component]]
"""Task and metric to circuit."""


@dataclass
class Task:
    """A task: what judges it, by which metrics, and how these rank components.

    Attributes:
        judge: The held-out prompts, with means.
        ranking: The prompts that rank, with means.
        metrics: Those by which the whole model is ahead of the empty circuit.
        scores: Metric to scores ``[component, n]`` on the prompts that rank.
        empty: Metric to its value with everything ablated ``[n]``.
        span: Metric to whole - empty ``[n]``.
    """

    judge: Evaluator
    ranking: Evaluator
    metrics: dict[str, Metric]
    scores: dict[str, np.ndarray]
    empty: dict[str, torch.Tensor]
    span: dict[str, torch.Tensor]

    def values(self, ablated: list[Any], progress: str | None = None) -> dict[str, torch.Tensor]:
        """Each metric's value, and whether the answer is on top, without some sets ``[set, n]``."""
        names = [*self.metrics, "accuracy"]

        def read(stream: torch.Tensor) -> list[torch.Tensor]:
            found = [metric(self.judge, stream).cpu() for metric in self.metrics.values()]
            top = self.judge.logits(stream).argmax(-1).cpu()  # [set, n]
            return [*found, (top == self.judge.answers.answer_ids).float()]

        return dict(zip(names, self.judge.each(ablated, read, progress=progress), strict=True))

    def kept(self, metric: str, values: torch.Tensor) -> torch.Tensor:
        """(Value - empty) as a share of the mean of whole - empty, prompt by prompt ``[…, n]``."""
        return (values - self.empty[metric]) / self.span[metric].mean()


def compared(at: Setting, left_out: dict[str, str]) -> dict[str, Task]:
    """The tasks that the model can do, ranked by every metric.

    Args:
        at: The run.
        left_out: Gets what is not compared, and why.

    Raises:
        CannotDo: where no task can be done.
    """
    lm, held, tasks = at.model, at["n_held"], {}
    counts = {"n_prompts": held + at["n_ranked"], "n_means": at["n_means"], "n_discovery": 1}
    for task in tqdm(at["tasks"], desc="Rankings", unit="task"):
        with section(left_out, TASKS[task].title):
            sets = drawing.prompt_sets(
                lm, task, seed=at["seed"], templates=at["templates"], **counts
            )
            means = mean_activations(lm, sets.means)
            rows = range(held, len(sets.evaluation))
            judge, ranking = (Evaluator(lm, sets.evaluation[r], means) for r in (range(held), rows))
            positive_baseline(judge.intact.logit_diff, f"{lm.facts.title} on {task}")
            members = [i for i in vocabulary(task, lm.tokenizer).ids if i is not None]
            asked = (logit_difference, answer_log_prob, answer_over(members), minus_kl)
            one = Task(judge, ranking, dict(zip(METRICS, asked, strict=True)), {}, {}, {})
            whole, empty = one.values([[]]), one.values([components(lm)])
            for name, metric in list(one.metrics.items()):
                span = (whole[name] - empty[name])[0]  # [n]
                if span.mean() <= 0:
                    left_out[f"{TASKS[task].title}, {name}"] = (
                        "the whole model is not ahead of the empty circuit."
                    )
                    del one.metrics[name]
                    continue
                one.empty[name], one.span[name] = empty[name][0], span
                given = lm, ranking.prompts, sets.corrupted[rows], metric
                one.scores[name] = by_prompt(
                    *given, method=at["ranking"], n_steps=at["n_rank_steps"]
                )
            if one.metrics:
                tasks[task] = one
    if not tasks:
        raise CannotDo("No task can be done: there is nothing to compare.")
    return tasks


def ranked(tasks: Mapping[str, Task], everything: list[Component], size: int) -> Found:
    """The strongest components by each metric, as many for all."""
    return {
        (task, metric): strongest(everything, scores, size)
        for task, one in tasks.items()
        for metric, scores in one.scores.items()
    }


def strongest(everything: list[Component], scores: np.ndarray, size: int) -> set[Component]:
    """The components that scores ``[component, n]`` call strongest."""
    chosen = specificity.strongest(scores, size)
    return {c for c, inside in zip(everything, chosen, strict=True) if inside}


def searched(at: Setting, tasks: Mapping[str, Task], left_out: dict[str, str]) -> Found:
    """The circuit that a ranked search leaves by each metric.

    Each search starts from its metric's own ranking, and keeps ``threshold`` of whole - empty on
    the first ``n_searched`` of the prompts that rank.

    Args:
        at: The run; ``n_searched`` of 0 searches none.
        tasks: The tasks.
        left_out: Gets what is not searched, and why.
    """
    found: dict[tuple[str, str], set[Component]] = {}
    if not at["n_searched"]:
        left_out["Searches"] = "n_searched is 0."
        return found
    everything = components(at.model)
    for task, one in tasks.items():
        prompts = one.ranking.first(at["n_searched"])
        for metric, scores in one.scores.items():
            title = f"{TASKS[task].title}, {metric}"
            with section(left_out, f"{title}, searched"):
                measure = one.metrics[metric]
                empty = Pruning(prompts, everything, measure).score.mean().item()
                costs = (-scores.mean(1)).tolist()
                kept = search.ranked(
                    prompts,
                    at["threshold"],
                    goal=search.Goal(measure, empty, f"{metric} of {task}"),
                    first=dict(zip(everything, costs, strict=True)),
                    checkpoint=at.checkpoint(f"{task}.{METRICS.index(metric)}.json"),
                    progress=title,
                )
                found[task, metric] = kept.components
    return found

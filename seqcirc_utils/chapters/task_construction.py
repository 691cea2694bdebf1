"""What is asked of the model, in which words, and whether it can do it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd
import torch

from seqcirc_utils.chapters.findings import Findings, table
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.errors import section
from seqcirc_utils.prompts.drawing import clean_prompts, tally
from seqcirc_utils.prompts.scores import Scores, passes_paper_filter, score
from seqcirc_utils.prompts.sequences import TEMPLATES
from seqcirc_utils.prompts.vocabulary import vocabulary
from seqcirc_utils.statistics import between_groups, interval, over_groups, rate

LENGTHS = range(1, 9)
"""How many members are shown, where the task has as many."""


@dataclass(frozen=True, kw_only=True)
class TaskConstruction(Findings):
    """The evaluation prompts, and how well the model does on them and on others like them.

    Accuracies are shares of prompts with their exact 95% interval, logit differences means (logits)
    with a bootstrap one. Rows of ``by_…`` hold both, ``n``, and what the prompts have in common.

    Attributes:
        prompts: A row per evaluation prompt.
        corrupted: The same prompts with random members.
        tokens: The first prompt, token by token.
        groups: Which of its tokens each group of positions holds.
        front: What stands in front of every prompt, and why.
        model_title: The model's title.
        task: The task.
        n: How many evaluation prompts.
        accuracy: Of the evaluation prompts: ``mean``, ``low``, ``high``.
        logit_diff: Likewise.
        corrupted_logit_diff: The mean on the corrupted prompts (logits).
        paper_filter_keeps: How many evaluation prompts pass the paper's filter.
        filtered: Where that filter was on, how many prompts were ``kept`` of how many ``drawn``,
            and how many of each template (``templates``); empty where it was off.
        by_start: The evaluation prompts by first member.
        starts: The share of the logit difference's variance that lies ``between`` starts, and the
            bounds ``low`` and ``high`` of its mean where starts, not prompts, count as drawn; empty
            where no start has two prompts.
        by_length: Others, by number of members shown.
        by_template: Others, by template.
        templates: How many prompts each template got.
        missing: A row of ``by_length`` or ``by_template`` (its first column's name and value) that
            the tokenizer does not allow, and why.
    """

    stage = "01_task_construction"

    prompts: pd.DataFrame = table(
        "csv", {"prompt": str, "answer": str, "last member": str, "start": int, "template": str}
    )
    corrupted: list[str]
    tokens: list[str]
    groups: dict[str, list[bool]]
    front: str
    model_title: str
    task: str
    n: int
    accuracy: dict[str, float]
    logit_diff: dict[str, float]
    corrupted_logit_diff: float
    paper_filter_keeps: int
    filtered: dict[str, Any]
    by_start: list[dict[str, Any]]
    starts: dict[str, float]
    by_length: list[dict[str, Any]]
    by_template: list[dict[str, Any]]
    templates: str
    missing: dict[str, str]

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Draw the prompts and score the model on them; see the class."""
        lm, sets = at.model, at.sets()
        prompts, members = sets.evaluation, vocabulary(at["task"], lm.tokenizer)
        assert not set(prompts.texts) & {*sets.discovery.texts, *sets.means.texts}
        scores = score(lm, prompts)
        starts = torch.tensor(prompts.starts)
        lengths = {n: {"n_members": n} for n in LENGTHS if members.starts(n)}
        templates = {f"… {name} in …": {"templates": [name]} for name in TEMPLATES}
        by_length, no_length = _on_others(at, "members shown", lengths)
        by_template, no_template = _on_others(at, "template", templates)
        both = prompts, sets.discovery
        return cls(
            prompts=prompts.frame(),
            corrupted=sets.corrupted.texts,
            tokens=[lm.tokenizer.decode([i]) for i in prompts.tokens[0].tolist()],
            groups={name: mask[0].tolist() for name, mask in prompts.groups().items()},
            front=lm.facts.front,
            model_title=lm.facts.title,
            task=at["task"],
            n=len(prompts),
            accuracy=vars(rate(scores.correct)),
            logit_diff=vars(interval(scores.logit_diff, at["seed"])),
            corrupted_logit_diff=score(lm, sets.corrupted).logit_diff.mean().item(),
            paper_filter_keeps=int(passes_paper_filter(scores).sum()),
            filtered={
                "kept": sum(map(len, both)),
                "drawn": sets.drawn,
                "templates": tally(at["templates"], *both),
            }
            if at["paper_filter"]
            else {},
            by_start=[
                {"first member": members.members[start]}
                | _summary(scores[starts == start], at["seed"])
                for start in sorted(set(prompts.starts))
            ],
            starts=_by_starts(scores.logit_diff, prompts.starts),
            by_length=by_length,
            by_template=by_template,
            templates=at.tally(),
            missing=no_length | no_template,
        )


def _on_others(
    at: Setting, label: str, choices: Mapping[Any, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Scores on prompts drawn as each choice says, a row each, and why there is no row."""
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for choice, how in choices.items():
        asked = {"seed": at["seed"], "templates": at["templates"], **how}
        with section(missing, f"{label} {choice}"):
            prompts = clean_prompts(at.model, at["task"], at["n_prompts"], **asked)
            rows.append({label: choice} | _summary(score(at.model, prompts), at["seed"]))
    return rows, missing


def _by_starts(logit_diff: torch.Tensor, starts: Sequence[int]) -> dict[str, float]:
    """What starts make of the logit difference; see the class."""
    between = between_groups(logit_diff, starts)
    if math.isnan(between):
        return {}
    low, high = over_groups(logit_diff[None], torch.ones(len(starts)), starts)
    return {"between": between, "low": low.item(), "high": high.item()}


def _summary(scores: Scores, seed: int) -> dict[str, float]:
    """Accuracy and logit difference with their intervals, and of how many prompts."""
    row: dict[str, float] = {"n": len(scores.correct)}
    measured = {"accuracy": rate(scores.correct), "logit_diff": interval(scores.logit_diff, seed)}
    for name, found in measured.items():
        row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    return row

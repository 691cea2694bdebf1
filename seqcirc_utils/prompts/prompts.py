"""Prompts with all that is known about them, and the disjoint sets of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch


@dataclass(frozen=True)
class Prompts:
    """``n`` prompts of one task, ``pos`` tokens each, with everything that is known about them.

    Attributes:
        task: Name of the task.
        texts: The prompts as text.
        tokens: Token ids ``[n, pos]``, the prepended token included.
        answer_ids: Token of the next member ``[n]``.
        last_ids: Token of the last member shown, the metric's incorrect answer ``[n]``.
        member_positions: Token position of every member ``[n, n_members]``.
        in_positions: Token position of every "in" ``[n, n_members + 1]``.
        members: Members shown, in order of appearance, per prompt.
        answers: The next member, per prompt; that of the clean prompt for corrupted ones.
        starts: Index of the first member in the task's sequence (-1 for corrupted prompts).
        templates: Name of the template, per prompt.
        fillers: Names or things, per prompt.
    """

    task: str
    texts: list[str]
    tokens: torch.Tensor
    answer_ids: torch.Tensor
    last_ids: torch.Tensor
    member_positions: torch.Tensor
    in_positions: torch.Tensor
    members: list[tuple[str, ...]]
    answers: list[str]
    starts: list[int]
    templates: list[str]
    fillers: list[tuple[str, ...]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Sequence[int]) -> "Prompts":
        """The prompts of the given rows."""
        rows = list(rows)
        changes: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                changes[name] = value[rows]
            elif isinstance(value, list):
                changes[name] = [value[row] for row in rows]
        return replace(self, **changes)

    def frame(self) -> pd.DataFrame:
        """One row per prompt, for people."""
        return pd.DataFrame(
            {
                "prompt": self.texts,
                "answer": self.answers,
                "last member": [m[-1] for m in self.members],
                "start": self.starts,
                "template": self.templates,
            }
        )

    def groups(self) -> dict[str, torch.Tensor]:
        """Position groups, disjoint and complete: name to boolean mask ``[n, pos]``.

        ``member 1`` …, ``in`` (those before a shown member), ``end`` (the last token) and
        ``other``.
        """
        n, pos = self.tokens.shape
        rows = torch.arange(n)
        groups = {}
        left = torch.ones(n, pos, dtype=torch.bool)
        for i in range(self.member_positions.shape[1]):
            mask = torch.zeros(n, pos, dtype=torch.bool)
            mask[rows, self.member_positions[:, i]] = True
            groups[f"member {i + 1}"] = mask
        mask = torch.zeros(n, pos, dtype=torch.bool)
        mask[rows[:, None], self.in_positions[:, :-1]] = True
        groups["in"] = mask
        mask = torch.zeros(n, pos, dtype=torch.bool)
        mask[:, -1] = True
        groups["end"] = mask
        for mask in groups.values():
            left &= ~mask
        groups["other"] = left
        return groups


@dataclass(frozen=True)
class PromptSets:
    """The disjoint sets of one run; no two share a prompt.

    Attributes:
        evaluation: Clean prompts that every reported number is measured on.
        corrupted: The same prompts with random members (paired by row).
        discovery: Clean prompts for choosing circuits, never for reporting.
        means: Corrupted prompts with fillers of their own, behind the mean activations.
        drawn: How many clean prompts were drawn to fill evaluation and discovery.
    """

    evaluation: Prompts
    corrupted: Prompts
    discovery: Prompts
    means: Prompts
    drawn: int

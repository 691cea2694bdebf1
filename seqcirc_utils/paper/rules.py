"""What a rule for a claim is, what it finds, and which head stands for a head that the paper names.

A rule's limits were set before this model's results were seen; it can come out either way, and
reads results, never a model. Where the paper names a head of GPT-2, the rule for any other model
asks for a head that all circuits share and that does the same; a run of GPT-2 is held to the names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from seqcirc_utils.errors import UserError
from seqcirc_utils.paper.evidence import TASKS, Evidence

KEY = ("0.1", "4.4", "7.11", "9.1")
"""The paper's key heads of GPT-2."""
SUPPORTED, NOT_SUPPORTED = "supported", "not supported"

Figure = float | None | Sequence[float | None]
Figures = Mapping[str, Figure]


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        figures: Label to a figure, or to one per task; labels of ``published.json`` where the two
            can be compared.
        parts: The parts of the rule in words, and whether each holds.
        note: What else a reader should know, such as which head it is.
    """

    figures: Figures
    parts: dict[str, bool]
    note: str = ""

    @property
    def verdict(self) -> str:
        """``supported`` when every part holds."""
        return SUPPORTED if all(self.parts.values()) else NOT_SUPPORTED


@dataclass(frozen=True)
class Rule:
    """A rule in words, and the function that applies it; both have the same limits."""

    text: str
    judge: Callable[[Evidence], Finding]


RULES: dict[str, Rule] = {}
"""Claim to its rule, of all modules that were imported."""


def rule(claim: str, text: str, **limits: float) -> Callable[[Callable], Callable]:
    """Register a function as a claim's rule; its text and the function get the same limits."""

    def register(judge: Callable) -> Callable:
        RULES[claim] = Rule(text.format(**limits), partial(judge, **limits))
        return judge

    return register


# --- Which head stands for a head of GPT-2 ------------------------------------------------------


def candidates(e: Evidence, name: str) -> list[str]:
    """The head that the paper names, in GPT-2; any head that all circuits share, elsewhere."""
    return [name] if e.named else e.shared()


def key_heads(e: Evidence) -> list[str]:
    """The paper's four; elsewhere the four shared heads whose smallest cost is largest."""
    if e.named:
        return list(KEY)
    least = pd.concat([e.changes(t) for t in TASKS], axis=1).max(axis=1)
    return least.reindex(e.shared()).nsmallest(len(KEY)).index.to_list()


def best_of(names: Sequence[str], score: Callable[[str], Any]) -> str | None:
    """The name with the highest score; ``None`` when there is no name."""
    return max(names, key=score, default=None)


def by_task(measure: Callable[[str], pd.Series], name: str | None) -> list[float | None]:
    """A head's figure in each task; ``None`` where it was not measured."""
    found = [measure(t).get(name) for t in TASKS]
    return [None if value is None or pd.isna(value) else float(value) for value in found]


def all_hold(values: Sequence[float | None], holds: Callable[[float], bool]) -> bool:
    """Whether every figure was measured and holds."""
    return all(value is not None and holds(value) for value in values)


def only_elsewhere(e: Evidence) -> None:
    """Refuse GPT-2 for claims on Llama-2: they are about other models.

    Raises:
        UserError: for GPT-2.
    """
    if e.named:
        raise UserError("the claim is about a model other than GPT-2.")

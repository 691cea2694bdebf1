"""Which members of a sequence are single tokens of a tokenizer."""

from dataclasses import dataclass
from typing import Any

from seqcirc_utils.errors import unknown
from seqcirc_utils.prompts.sequences import TASKS


@dataclass(frozen=True)
class Vocabulary:
    """How one tokenizer writes one task.

    Attributes:
        members: The task's members in order.
        ids: Token id of each, or ``None`` where the tokenizer splits it.
        space_apart: Whether the space before a member is a token of its own (digits in many
            tokenizers); prompts then end with that space.
    """

    members: tuple[str, ...]
    ids: tuple[int | None, ...]
    space_apart: bool

    def starts(self, n_members: int) -> list[int]:
        """Indices from which ``n_members`` members and an answer are single tokens."""
        last = len(self.members) - n_members
        return [s for s in range(last) if None not in self.ids[s : s + n_members + 1]]


def encode(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text, and nothing put in front of them."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def vocabulary(task: str, tokenizer: Any) -> Vocabulary:
    """Find the single-token members of a task.

    Raises:
        UserError: for an unknown task.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    members = TASKS[task].members
    spaced = [encode(tokenizer, f" {member}") for member in members]
    space = encode(tokenizer, " ")
    if any(len(ids) == 1 for ids in spaced):
        ids = tuple(i[0] if len(i) == 1 else None for i in spaced)
        return Vocabulary(members, ids, space_apart=False)
    bare = [i[len(space) :] if i[: len(space)] == space else [] for i in spaced]
    ids = tuple(i[0] if len(i) == 1 else None for i in bare)
    return Vocabulary(members, ids, space_apart=len(space) == 1)

"""Questions as a model's tokenizer writes them, in batches of one length."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from seqcirc_utils.errors import UserError
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.probes import Probe, Question
from seqcirc_utils.prompts.vocabulary import encode

MIN_QUESTIONS = 4
"""Fewer questions than this say nothing about an ability."""
MAX_LENGTHS = 2
"""Batches of a probe: its questions come from the most frequent token lengths."""


Encoded = tuple[tuple[int, ...], int]
"""Token ids of a question and its answer, and how many of them are the answer's."""


@dataclass(frozen=True)
class Batch:
    """Questions of one token length, their answers written out.

    Attributes:
        tokens: Context and answer ``[n, pos]``, the prepended token included.
        n_answer: How many of the tokens are the answer's.
        rows: Which questions these are, in the order of a probe's scores.
    """

    tokens: torch.Tensor
    n_answer: int
    rows: tuple[int, ...]


def batches_of(encoded: Sequence[Encoded]) -> list[Batch]:
    """Questions in batches of one length, and of one length of the answer."""
    lengths = defaultdict(list)
    for row, (ids, n_answer) in enumerate(encoded):
        lengths[len(ids), n_answer].append(row)
    return [
        Batch(torch.tensor([encoded[row][0] for row in rows]), n_answer, tuple(rows))
        for (_, n_answer), rows in lengths.items()
    ]


@dataclass(frozen=True)
class Fitted:
    """A probe's questions as a model's tokenizer writes them.

    Attributes:
        questions: The questions.
        right: They and their answers as tokens.
        wrong: They and their wrong answers as tokens.
        references: Corrupted questions ``[m, pos]`` by length and length of the answer.
    """

    probe: Probe
    questions: tuple[Question, ...]
    right: tuple[Encoded, ...]
    wrong: tuple[Encoded, ...]
    references: Mapping[tuple[int, int], torch.Tensor]

    def __len__(self) -> int:
        return len(self.questions)

    def only(self, rows: Sequence[int]) -> "Fitted":
        """The questions of the given rows."""
        kept = {
            name: tuple(getattr(self, name)[row] for row in rows)
            for name in ("questions", "right", "wrong")
        }
        return replace(self, **kept)


def _encode(model: Model, context: str, answer: str) -> Encoded | None:
    """A question and its answer as tokens; None where the tokenizer cannot hold them.

    That is so where its vocabulary lacks something, or the answer melts into the context.
    """

    head, whole = (encode(model.tokenizer, text) for text in (context, context + answer))
    if whole[: len(head)] != head or len(whole) == len(head):
        return None
    if model.tokenizer.unk_token_id in whole:
        return None
    return (*model.in_front, *whole), len(whole) - len(head)


def fit(model: Model, probe: Probe, n: int, n_references: int = 16) -> Fitted:
    """Write the first ``n`` questions of a probe that the tokenizer can hold.

    Questions come from the :data:`MAX_LENGTHS` most frequent token lengths, so that batches are
    few and each has corrupted questions of its own length to take means over.

    Raises:
        UserError: when fewer than :data:`MIN_QUESTIONS` fit, with what the tokenizer cannot hold.
    """
    fits, lost = [], []
    for question in probe.questions:
        texts = (question.context, question.answer), (question.context, question.wrong)
        encoded = [_encode(model, *pair) for pair in (*texts, (question.corrupted, texts[0][1]))]
        if None in encoded:
            lost.append(question.answer.strip())
        else:
            fits.append((question, *encoded))
    references = defaultdict(list)
    for *_, (ids, n_answer) in fits:
        references[len(ids), n_answer].append(ids)
    lengths = [(len(ids), n_answer) for _, (ids, n_answer), *_ in fits]
    counts = Counter(length for length in lengths if len(references[length]) >= 2)
    common = dict(counts.most_common(MAX_LENGTHS))
    chosen = [entry for entry, length in zip(fits, lengths, strict=True) if length in common][:n]
    if len(chosen) < min(n, MIN_QUESTIONS):
        words = ", ".join(dict.fromkeys(lost))
        raise UserError(
            f"the tokenizer of {model.facts.title} can hold {len(chosen)} questions of "
            f"{probe.name!r}, {MIN_QUESTIONS} are needed"
            + (f" (it cannot write: {words})." if words else ".")
        )
    questions, right, wrong, _ = zip(*chosen, strict=True)
    means = {key: torch.tensor(references[key][:n_references]) for key in common}
    return Fitted(probe, questions, right, wrong, means)

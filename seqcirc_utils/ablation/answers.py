"""Answers of several tokens, scored with heads ablated."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from seqcirc_utils.ablation.engine import Replay
from seqcirc_utils.ablation.readout import continuations
from seqcirc_utils.ablation.replay import hook_name, record, run_blocks
from seqcirc_utils.choices import KINDS
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.questions import Batch, Encoded, Fitted, batches_of


@dataclass(frozen=True)
class Answers:
    """How the answers fare; the last axis is the question.

    Attributes:
        correct: Whether the whole answer is what the model would write, and no more.
        log_prob: Its log probability, summed over tokens, in nats.
    """

    correct: torch.Tensor
    log_prob: torch.Tensor


class Bench:
    """A fitted probe, ready to be asked again and again with heads ablated.

    Args:
        model: The model, weights unprocessed.
        fitted: The probe.
        kind: ``zero``, or ``mean``: per position, over corrupted questions of the same length.

    Raises:
        UserError: for another kind, or logits that are not finite.
    """

    def __init__(self, model: Model, fitted: Fitted, kind: str = "mean") -> None:
        if kind not in KINDS:
            raise unknown("ablation", kind, KINDS)
        self.model, self.fitted, self.kind = model, fitted, kind
        self.batches = batches_of(fitted.right)
        self._replays = []
        for batch in self.batches:
            run = record(model, batch, writes=False)
            if kind == "mean":
                reference = fitted.references[batch.tokens.shape[1], batch.n_answer]
                new = record(model, replace(batch, tokens=reference)).activations.mean()
            else:
                new = run.activations.zero()
            # One position more than the answer has tokens: does the model go on with the word?
            self._replays.append(Replay(run, new, last=batch.n_answer + 1))
        self.intact = self.ablated([()])

    def ablated(self, sets: Sequence[Iterable[Component]]) -> Answers:
        """Scores ``[set, n]`` with each set's heads ablated at all positions.

        Raises:
            UserError: for a component that is not a head of the model.
        """
        sets = [frozenset(heads) for heads in sets]
        for component in frozenset().union(*sets):
            layer, head = component
            if head is None or not (layer < self.model.n_layers and head < self.model.n_heads):
                raise UserError(f"{component} is not a head of {self.model.facts.title}.")
        parts = [
            replay.each(sets, lambda stream, batch=batch: read(self.model, batch, stream))
            for batch, replay in zip(self.batches, self._replays, strict=True)
        ]
        return _joined(parts, self.batches)


def read(model: Model, batch: Batch, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score a batch's last streams.

    Args:
        model: The model.
        batch: The questions.
        stream: Last streams ``[set, n, n_answer + 1 or more, d_model]``.

    Returns:
        Whether the answers are correct, and their log probabilities in nats: both ``[set, n]``.

    Raises:
        UserError: for logits that are not finite, or a model whose logits are not made by final
            norm and unembedding.
    """
    truth = batch.tokens[:, -batch.n_answer :]  # [n, n_answer]
    top, log_prob = continuations(model, stream[:, :, -batch.n_answer - 1 :], truth)
    more = [
        [_goes_on(model, *pair) for pair in zip(truth[:, -1], following, strict=True)]
        for following in top[..., -1]
    ]
    return (top[..., :-1] == truth).all(-1) & ~torch.tensor(more), log_prob.sum(-1)


def _goes_on(model: Model, last: torch.Tensor, following: torch.Tensor) -> bool:
    """Whether a token that follows the answer's last one would carry the word or number on."""
    decode = model.tokenizer.decode
    return decode([int(last), int(following)])[len(decode([int(last)])) :][:1].isalnum()


@torch.no_grad()
def answered(model: Model, encoded: Sequence[Encoded]) -> Answers:
    """Scores ``[1, n]`` of the whole model, plainly.

    Raises:
        UserError: as :func:`read`.
    """
    batches, seen = batches_of(encoded), []
    hook = (hook_name(model.n_layers - 1, "out"), lambda value, hook: seen.append(value))
    for batch in batches:
        run_blocks(model, batch.tokens, [hook])
    parts = [read(model, *pair) for pair in zip(batches, (s[None] for s in seen), strict=True)]
    return _joined(parts, batches)


def _joined(parts: Sequence[Sequence[torch.Tensor]], batches: Sequence[Batch]) -> Answers:
    """Scores of batches ``[set, rows]`` in the order of the questions ``[set, n]``."""
    order = torch.tensor([row for batch in batches for row in batch.rows]).argsort()
    return Answers(*(torch.cat(values, 1)[:, order] for values in zip(*parts, strict=True)))

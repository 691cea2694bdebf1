"""Answers of several tokens, scored with heads ablated."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from transformer_lens.tools.analysis import logit_readout

from seqcirc_utils.ablation.replay import record
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.questions import Batch, Encoded, Fitted, _batches

KINDS = ("mean", "zero")


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
        max_tokens: Tokens (sets times questions times positions) of one pass: bounds the memory.

    Raises:
        UserError: for another kind, or logits that are not finite.
    """

    def __init__(
        self, model: Model, fitted: Fitted, kind: str = "mean", *, max_tokens: int = 4096
    ) -> None:
        if kind not in KINDS:
            raise unknown("ablation", kind, KINDS)
        self.model, self.fitted, self.kind, self.max_tokens = model, fitted, kind, max_tokens
        self._known: dict[frozenset[Component], tuple[torch.Tensor, torch.Tensor]] = {}
        self.batches = _batches(fitted.right)
        self._runs, self._replacements = [], []
        for batch in self.batches:
            self._runs.append(record(model, batch))
            if kind == "mean":
                reference = fitted.references[batch.tokens.shape[1], batch.n_answer]
                z = record(model, replace(batch, tokens=reference)).activations.z
                self._replacements.append(z.mean(1))
            else:
                self._replacements.append(torch.zeros_like(self._runs[-1].activations.z[:, 0]))
        self.intact = self.ablated([()])

    def ablated(self, sets: Sequence[Iterable[Component]]) -> Answers:
        """Scores ``[set, n]`` with each set's heads ablated at all positions.

        Raises:
            UserError: for a component that is not a head of the model.
        """
        keys = [frozenset(heads) for heads in sets]
        for component in frozenset().union(*keys):
            layer, head = component
            if head is None or not (layer < self.model.n_layers and head < self.model.n_heads):
                raise UserError(f"{component} is not a head of {self.model.facts.title}.")
        # Sets that start in one layer share passes: what lies below is not computed again.
        new = sorted(dict.fromkeys(k for k in keys if k not in self._known), key=self._start)
        step = max(1, self.max_tokens // max(b.tokens.numel() for b in self.batches))
        for i in range(0, len(new), step):
            part = new[i : i + step]
            scores = _joined(
                [self._replay(j, part) for j in range(len(self.batches))], self.batches
            )
            self._known |= zip(part, zip(scores.correct, scores.log_prob, strict=True), strict=True)
        correct, log_prob = zip(*(self._known[key] for key in keys), strict=True)
        return Answers(torch.stack(correct), torch.stack(log_prob))

    def _start(self, heads: frozenset[Component]) -> int:
        return min((layer for layer, _ in heads), default=self.model.n_layers)

    @torch.no_grad()
    def _replay(
        self, place: int, sets: Sequence[frozenset[Component]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores ``[set, row]`` of one batch, from the first block that a set ablates."""
        batch, run = self.batches[place], self._runs[place]
        replacement = self._replacements[place]
        bridge, n, count = self.model.bridge, len(batch.rows), len(sets)
        start = min(map(self._start, sets))
        gone = torch.zeros(count, self.model.n_layers, self.model.n_heads, dtype=torch.bool)
        for i, heads in enumerate(sets):
            for layer, head in heads:
                gone[i, layer, head] = True
        gone = gone.to(replacement.device)

        def swap(layer: int) -> Callable:
            mask, new = gone[:, layer, None, None, :, None], replacement[layer]
            return lambda z, hook: torch.where(
                mask, new, z.reshape(count, n, *z.shape[1:])
            ).reshape(z.shape)

        stream = run.residual[start].repeat(count, 1, 1)
        layers = range(start, self.model.n_layers)
        hooks = [(f"blocks.{layer}.attn.hook_z", swap(layer)) for layer in layers]
        with bridge.hooks(fwd_hooks=hooks):
            for layer in layers:
                out = bridge.blocks[layer](stream, **run.block_arguments[layer])
                stream = out[0] if isinstance(out, tuple) else out
        return _read(self.model, batch, stream)


def _read(model: Model, batch: Batch, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score final residuals ``[count * n, pos, d_model]``: correct, log probability ``[count, n]``.

    Raises:
        UserError: for logits that are not finite.
    """
    rows, (n, n_answer) = 256, (len(batch.rows), batch.n_answer)  # rows bound the logits' memory
    # One position more than the answer has tokens: does the model go on with the word?
    final = stream[:, -n_answer - 1 :]
    truth = batch.tokens[:, -n_answer:].repeat(len(stream) // n, 1)
    correct, log_prob = [], []
    for part, true in zip(final.split(rows), truth.split(rows), strict=True):
        logits = logit_readout(model.bridge, part.flatten(0, 1), chunk_size=rows).values.float()
        if not torch.isfinite(logits).all():
            raise UserError("the model's logits hold NaN or infinity: try dtype float32.")
        logits = logits.reshape(*part.shape[:2], -1)
        top = logits.argmax(-1).cpu()
        own = logits[:, :-1].gather(-1, true.to(logits.device)[..., None])[..., 0]
        log_prob.append((own - logits[:, :-1].logsumexp(-1)).sum(-1).cpu())
        more = [_goes_on(model, *pair) for pair in zip(true[:, -1], top[:, -1], strict=True)]
        correct.append((top[:, :-1] == true).all(-1) & ~torch.tensor(more))
    return torch.cat(correct).reshape(-1, n), torch.cat(log_prob).reshape(-1, n)


def _goes_on(model: Model, last: torch.Tensor, following: torch.Tensor) -> bool:
    """Whether a token that follows the answer's last one would carry the word or number on."""
    decode = model.tokenizer.decode
    return decode([int(last), int(following)])[len(decode([int(last)])) :][:1].isalnum()


@torch.no_grad()
def _plain(model: Model, encoded: Sequence[Encoded]) -> Answers:
    """Scores ``[1, n]`` of the intact model."""
    batches, parts, seen = _batches(encoded), [], []
    hook = (f"blocks.{model.n_layers - 1}.hook_out", lambda value, hook: seen.append(value))
    for batch in batches:
        tokens = batch.tokens.to(model.device)
        model.bridge.run_with_hooks(tokens, return_type=None, fwd_hooks=[hook])
        parts.append(_read(model, batch, seen.pop()))
    return _joined(parts, batches)


def _joined(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], batches: Sequence[Batch]
) -> Answers:
    """Scores of batches ``[count, rows]`` in the order of the questions ``[count, n]``."""
    order = torch.tensor([row for batch in batches for row in batch.rows]).argsort()
    return Answers(*(torch.cat(values, 1)[:, order] for values in zip(*parts, strict=True)))

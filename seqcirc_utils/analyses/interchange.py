"""Interchange: what a part holds in one prompt, put into a prompt that starts elsewhere.

If a part carries how far a sequence has come, then a prompt of months that is given what the part
holds in a prompt of digits should be answered with the month that follows as many members (Geiger
et al. 2021 name such tests interchange interventions). What is put in is raw, or the deviation from
the source task's mean on top of the other task's mean: a raw swap brings the source task's own
words along.

Only the last position is changed, where the answer is read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from transformer_lens.tools.analysis.interchange import fit_das
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.ablation.engine import Replay
from seqcirc_utils.ablation.replay import Activations, Run, hook_name, record
from seqcirc_utils.components import Component
from seqcirc_utils.errors import CannotDo
from seqcirc_utils.models.capabilities import logits
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.vocabulary import vocabulary
from seqcirc_utils.statistics import finite, interval, rate

KINDS = ("raw", "deviation", "placebo")
"""What is put in; a placebo moves the stream as far as the deviation, in a random direction."""


@dataclass(frozen=True)
class Pairs:
    """Prompts of two tasks (or one), row by row, that start at different places.

    Attributes:
        base: Prompts that are changed.
        source: Prompts that what is put in comes from.
        wanted: Token of the base task's member after the source's place ``[n]``.
    """

    base: Prompts
    source: Prompts
    wanted: torch.Tensor

    def __len__(self) -> int:
        return len(self.base)

    def outcomes(self) -> dict[str, torch.Tensor]:
        """The tokens ``[n]`` that answer each pair: ``wanted``, the base's ``own``, the source's.

        The source's own answer goes by ``token``.
        """
        own, token = self.base.answer_ids, self.source.answer_ids
        return {"wanted": self.wanted, "own": own, "token": token}


def pairs(model: Model, base: Prompts, source: Prompts, seed: int = 0) -> Pairs:
    """Pair every base prompt with a random source prompt that starts elsewhere.

    Raises:
        CannotDo: where no source prompt fits a base prompt: another start, and a place that the
            base task's sequence has as one token.
    """
    ids = vocabulary(base.task, model.tokenizer).ids
    shown = base.member_positions.shape[1]
    rng = np.random.default_rng([seed, len(base), len(source)])
    chosen, wanted = [], []
    for start in base.starts:
        fits = [
            row
            for row, other in enumerate(source.starts)
            if other != start and other + shown < len(ids) and ids[other + shown] is not None
        ]
        if not fits:
            raise CannotDo(
                f"no prompt of {source.task} fits one of {base.task}: draw more prompts."
            )
        row = int(rng.choice(fits))
        chosen.append(row)
        wanted.append(ids[source.starts[row] + shown])
    return Pairs(base, source[chosen], torch.tensor(wanted))


def every_pair(model: Model, base: Prompts, source: Prompts) -> Pairs:
    """Pair every base prompt with every source prompt, those that start alike included.

    Left out are sources at a place that the base task's sequence does not have as one token.

    Raises:
        CannotDo: where that leaves none.
    """
    ids = vocabulary(base.task, model.tokenizer).ids
    shown = base.member_positions.shape[1]
    after = [ids[s + shown] if s + shown < len(ids) else None for s in source.starts]
    fits = [row for row, token in enumerate(after) if token is not None]
    if not fits:
        raise CannotDo(f"no prompt of {source.task} fits one of {base.task}: draw more prompts.")
    rows = [n for n in range(len(base)) for _ in fits]
    return Pairs(
        base[rows], source[fits * len(base)], torch.tensor([after[i] for i in fits] * len(base))
    )


@dataclass(frozen=True)
class Ends:
    """What stands at the last position, and its mean over other prompts of the task.

    Attributes:
        stream: What enters each block, and the last one's output ``[layer + 1, n or 1, d_model]``.
        z: Heads before the output projection ``[layer, n or 1, head, d_head]``.
    """

    stream: torch.Tensor
    z: torch.Tensor

    @classmethod
    def of(cls, run: Run) -> "Ends":
        """Of a run's prompts."""
        # Copies: a view would keep all other positions.
        return cls(run.residual[:, :, -1].clone(), run.activations.z[:, :, -1].clone())

    def mean(self) -> "Ends":
        """The mean over prompts."""
        return Ends(self.stream.mean(1, keepdim=True), self.z.mean(1, keepdim=True))


class Swap:
    """Pairs of prompts, ready for one interchange after the other.

    Args:
        model: The model.
        pairs: The pairs.
        base_mean: The base task's mean at the end, over prompts that are in no pair.
        source_mean: The source task's.
        seed: Draws the placebo's directions.
        run: The run of the base prompts, where there is one.

    Raises:
        UserError: for a model whose logits are not made by final norm and unembedding.
    """

    def __init__(
        self,
        model: Model,
        pairs: Pairs,
        base_mean: Ends,
        source_mean: Ends,
        seed: int = 0,
        run: Run | None = None,
    ) -> None:
        self.model, self.pairs = model, pairs
        self.run = record(model, pairs.base) if run is None else run
        self.base, self.source = Ends.of(self.run), Ends.of(record(model, pairs.source))
        self.moved = Ends(
            base_mean.stream + self.source.stream - source_mean.stream,
            base_mean.z + self.source.z - source_mean.z,
        )
        self.seed = seed
        mean = self.run.activations.mean()
        self._replay = Replay(self.run, mean, max_rows=len(pairs))
        self.intact = self._read(self.run.residual[-1][:, -1])

    def stream(self, layer: int, kind: str, basis: torch.Tensor | None = None) -> "Outcome":
        """Put the source's stream in before a block: what the model says; see :meth:`last`."""
        return self._read(self.last(layer, kind, basis))

    def last(self, layer: int, kind: str, basis: torch.Tensor | None = None) -> torch.Tensor:
        """Put the source's stream in before a block (after the last one: ``n_layers``).

        Args:
            layer: The block.
            kind: One of :data:`KINDS`.
            basis: Directions ``[d_model, rank]`` that alone are swapped; all when ``None``.

        Returns:
            Last streams at the end ``[n, d_model]``.
        """
        old = self.base.stream[layer]
        new = {"raw": self.source.stream[layer]}.get(kind, self.moved.stream[layer])
        move = new - old
        if basis is not None:
            move = move @ basis @ basis.T
        if kind == "placebo":
            drawn = torch.randn(move.shape, generator=derive_generator(self.seed, "placebo", layer))
            drawn = drawn.to(move)
            move = drawn / drawn.norm(dim=-1, keepdim=True) * move.norm(dim=-1, keepdim=True)
        stream = self.run.residual[layer].clone()
        stream[:, -1] = old + move
        with torch.no_grad():
            nothing = [self._replay.masks([])]
            last = self._replay.replay(nothing, stream, layer, since=stream.shape[1] - 1)
        return last[0, :, -1]

    def heads(self, heads: Iterable[Component], kind: str) -> "Outcome":
        """Put in what some heads hold at the source's end, ``raw`` or as a ``deviation``."""
        own = self.run.activations
        z = own.z.clone()
        z[:, :, -1] = {"raw": self.source.z}.get(kind, self.moved.z)
        replay = Replay(self.run, Activations(z, own.mlp), max_rows=len(self.pairs))
        end = self.pairs.base.groups()["end"]
        (found,) = replay.each([list(heads)], lambda last: [last[:, :, -1]], positions=[end])
        return self._read(found[0])

    @torch.no_grad()
    def logits(self, stream: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, vocab]`` of last streams ``[n, d_model]``.

        Raises:
            UserError: for logits that are not finite.
        """
        return finite(logits(self.model, self.model.bridge.ln_final(stream), slice(None)).float())

    def _read(self, stream: torch.Tensor) -> "Outcome":
        """What the model says for last streams ``[n, d_model]``."""
        log_prob = self.logits(stream).log_softmax(-1).cpu()  # [n, vocab]
        tokens = self.pairs.outcomes()
        top = log_prob.argmax(-1)
        return Outcome(
            {name: top == ids for name, ids in tokens.items()},
            {name: log_prob.gather(-1, ids[:, None])[:, 0] for name, ids in tokens.items()},
        )


@dataclass(frozen=True)
class Outcome:
    """What the model says after an interchange.

    Attributes:
        says: Whether its top token of the whole vocabulary is the ``wanted`` answer, the prompt's
            ``own``, or the ``token`` that answers the source prompt: ``[n]`` each. Where the tasks
            are one, the last is the first.
        log_prob: Log probabilities of these in nats ``[n]``.
    """

    says: Mapping[str, torch.Tensor]
    log_prob: Mapping[str, torch.Tensor]

    def shift(self, intact: "Outcome") -> torch.Tensor:
        """How far the wanted answer gained on the prompt's own, in nats ``[n]``."""
        lead, before = (o.log_prob["wanted"] - o.log_prob["own"] for o in (self, intact))
        return lead - before

    def row(self, intact: "Outcome", seed: int = 0) -> dict[str, float]:
        """Shares of prompts with 95% intervals, and the mean shift with its own."""
        wanted = rate(self.says["wanted"])
        token = self.says["token"] & ~self.says["wanted"]
        other = ~(self.says["wanted"] | self.says["own"] | token)
        shift = interval(self.shift(intact), seed)
        return {
            "wanted": wanted.mean,
            "wanted_low": wanted.low,
            "wanted_high": wanted.high,
            "own": self.says["own"].double().mean().item(),
            "token": token.double().mean().item(),
            "other": other.double().mean().item(),
            "shift": shift.mean,
            "shift_low": shift.low,
            "shift_high": shift.high,
        }


def subspace(
    model: Model, fitted: Pairs, layer: int, *, rank: int, epochs: int, seed: int = 0
) -> torch.Tensor:
    """Directions before a block whose swap makes the model give the wanted answer.

    Found by distributed alignment search, among the base task's members (Geiger et al. 2024).

    Returns:
        An orthonormal basis ``[d_model, rank]``.
    """
    known = [i for i in vocabulary(fitted.base.task, model.tokenizer).ids if i is not None]
    classes = torch.tensor([known.index(int(i)) for i in fitted.wanted])

    def members(tokens: torch.Tensor) -> torch.Tensor:
        return model.bridge(tokens.to(model.device))[:, -1, known]

    def ends(prompts: Prompts) -> torch.Tensor:
        return torch.full((len(prompts),), prompts.tokens.shape[1] - 1)

    found = fit_das(
        model.bridge,
        hook_name(layer, "in"),
        fitted.base.tokens,
        fitted.source.tokens,
        classes,
        members,
        rank=rank,
        base_positions=ends(fitted.base),
        source_positions=ends(fitted.source),
        epochs=epochs,
        batch_size=16,
        lr=0.05,
        seed=seed,
    )
    return found.basis.detach()

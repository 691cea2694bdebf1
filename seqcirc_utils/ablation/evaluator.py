"""The evaluator: scores of prompts with any set of components replaced.

Only the final position is unembedded, and for a logit difference only two tokens of it.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from transformer_lens.tools.analysis import logit_readout

from seqcirc_utils.ablation.engine import Masks, Replay, Trace, fitting
from seqcirc_utils.ablation.replay import Activations, Run, hook_name, record
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.scores import Scores
from seqcirc_utils.statistics import finite

GRADIENT_BATCH = {"cpu": 4, "gpu": 32}
"""Prompts of one batch where a gradient is taken: its graph holds all their activations."""
Metric = Callable[["Evaluator", torch.Tensor], torch.Tensor]
"""From last streams ``[candidate, n, p, d_model]`` to values ``[candidate, n]``, more is better."""


def logit_difference(evaluator: "Evaluator", stream: torch.Tensor) -> torch.Tensor:
    """logit(answer) - logit(last member), the paper's metric."""
    return evaluator.difference(stream)


class Evaluator(Replay):
    """Scores one prompt set with any set of components replaced.

    Args:
        model: The model, weights unprocessed.
        prompts: Prompts to run; answers and last members are read from here.
        replacement: What replaced components write: ``n`` equal to ``len(prompts)``, or 1.
        answers: Prompts that say which tokens are answer and last member, row by row, when not
            ``prompts`` itself (a corrupted run is scored by its clean partner's answer).
        max_rows: Rows of one batch, as :class:`~seqcirc_utils.ablation.engine.Replay` takes them.
        run: The run of the prompts, where there is one.

    Attributes:
        intact: Scores of the whole model ``[n]``.
        reference: Its log probabilities at the end ``[n, vocab]``.

    Raises:
        UserError: when there are no prompts, the replacement fits neither the prompts nor the
            model, or logits are not finite.
    """

    def __init__(
        self,
        model: Model,
        prompts: Prompts,
        replacement: Activations,
        *,
        answers: Prompts | None = None,
        max_rows: int | None = None,
        run: Run | None = None,
    ) -> None:
        if not len(prompts):
            raise UserError("there are no prompts to evaluate: at least one is needed.")
        run = record(model, prompts, writes=False) if run is None else run
        super().__init__(run, replacement, max_rows=max_rows)
        self.prompts = prompts
        self.answers = prompts if answers is None else answers
        final = self.logits(run.residual[-1])
        self.reference = final.float().log_softmax(-1)
        self.intact = Scores.read(final, self.answers, self.reference)
        ids = torch.stack([self.answers.answer_ids, self.answers.last_ids]).to(final.device)
        self._directions = model.bridge.W_U[:, ids].permute(1, 2, 0)  # [2, n, d_model]
        self._biases = model.bridge.b_U[ids]  # [2, n]

    def with_(
        self,
        *,
        rows: Sequence[int] | None = None,
        replacement: Activations | None = None,
        answers: Prompts | None = None,
    ) -> "Evaluator":
        """An evaluator like this one, without running the model again.

        Args:
            rows: Some of the prompts; what else is given is theirs already.
            replacement: What replaced components write.
            answers: Prompts that say which tokens are answer and last member.

        Raises:
            UserError: as for a new one.
        """
        prompts, run, new, own = self.prompts, self.run, self.replacement, self.answers
        if rows is not None:
            prompts, run, new, own = prompts[rows], run[rows], new[rows], own[rows]
        return Evaluator(
            self.model,
            prompts,
            new if replacement is None else replacement,
            answers=own if answers is None else answers,
            max_rows=self.max_rows,
            run=run,
        )

    def replaced(
        self,
        candidates: Sequence[Iterable[Component]],
        *,
        positions: Sequence[torch.Tensor | None] | None = None,
        progress: str | None = None,
    ) -> Scores:
        """Scores with each candidate's components replaced.

        Args:
            candidates: Sets of components; each set is replaced together.
            positions: Per candidate, the positions to replace ``[n, pos]`` (or ``None``: all).
            progress: Label of a progress bar.

        Returns:
            Scores ``[candidate, n]``.
        """

        def read(stream: torch.Tensor) -> Iterable[torch.Tensor]:
            return vars(Scores.read(self.logits(stream), self.answers, self.reference)).values()

        return Scores(*self.each(candidates, read, positions=positions, progress=progress))

    def differences(
        self,
        candidates: Sequence[Iterable[Component]],
        *,
        positions: Sequence[torch.Tensor | None] | None = None,
        progress: str | None = None,
    ) -> torch.Tensor:
        """The logit differences alone of :meth:`replaced`, which take less: ``[candidate, n]``."""

        def read(stream: torch.Tensor) -> Iterable[torch.Tensor]:
            return (self.difference(stream).cpu(),)

        return self.each(candidates, read, positions=positions, progress=progress)[0]

    def kept(
        self, circuits: Sequence[Iterable[Component]], *, progress: str | None = None
    ) -> Scores:
        """Scores of circuits: every component outside each of the sets is replaced."""
        return self.replaced(self.outside(circuits), progress=progress)

    def outside(self, circuits: Iterable[Iterable[Component]]) -> list[set[Component]]:
        """The components outside each circuit.

        Raises:
            UserError: for an unknown component.
        """
        everything, circuits = set(components(self.model)), [set(c) for c in circuits]
        self.masks(set().union(*circuits))  # refuses unknown components
        return [everything - circuit for circuit in circuits]

    def logits(self, stream: torch.Tensor) -> torch.Tensor:
        """Logits at the end ``[…, vocab]`` of last streams ``[…, p, d_model]``."""
        final = stream[..., -1, :]
        return logit_readout(self.model.bridge, final, chunk_size=self.max_rows).values

    def difference(self, stream: torch.Tensor) -> torch.Tensor:
        """Logit differences ``[candidate, n]`` of last streams ``[candidate, n, p, d_model]``.

        Raises:
            UserError: for one that is not finite.
        """
        bridge = self.model.bridge
        final = bridge.ln_final(stream[:, :, -1])  # [candidate, n, d_model]
        both = torch.einsum("cnd,tnd->tcn", final, self._directions) + self._biases[:, None]
        answer, last = bridge.adapter.apply_output_logits_transform(both)
        return finite((answer - last).float())

    def estimate(
        self, removed: Iterable[Component] = (), rows: int = 0, metric: Metric = logit_difference
    ) -> dict[Component, float]:
        """First-order change of a metric's mean if one more component were replaced.

        Attribution patching at a circuit: gradient of the metric, with ``removed`` replaced, times
        what replacing each remaining component would change.

        Args:
            removed: Components replaced already.
            rows: How many prompts to use; all when 0.
            metric: The logit difference, or another.
        """
        effects = self.first(rows).slopes(removed, metric).mean(1).tolist()
        gone = set(removed)
        every = zip(components(self.model), effects, strict=True)
        return {c: effect for c, effect in every if c not in gone}

    def slopes(
        self, removed: Iterable[Component] = (), metric: Metric = logit_difference
    ) -> torch.Tensor:
        """The effects of :meth:`estimate` on each prompt: ``[component, n]``, in the model's order.

        What is removed already has none.
        """
        masks = self.masks(removed)
        batches = torch.arange(len(self.prompts)).split(fitting(self.model, GRADIENT_BATCH))
        parts = [self.with_(rows=b.tolist()) for b in batches] if len(batches) > 1 else [self]
        return torch.cat([part._slopes(masks, metric) for part in parts], -1).flatten(0, 1)

    def _slopes(self, masks: Masks, metric: Metric) -> torch.Tensor:
        """Effects of :meth:`slopes` ``[layer, head + 1, n]``: the MLP last."""
        trace: Trace = {}
        with torch.enable_grad():
            stream = self.run.residual[0].detach().requires_grad_()
            final = self.replay([masks], stream, 0, trace=trace)
            total = metric(self, final).sum()
            names = [name for name in trace if not name.endswith("hook_in")]
            slopes = torch.autograd.grad(total, [trace[n] for n in names], allow_unused=True)
        slope = dict(zip(names, slopes, strict=True))
        effects = torch.zeros(self.model.n_layers, self.model.n_heads + 1, len(self.prompts))
        for layer in range(self.model.n_layers):
            for kind, place in (("z", slice(0, -1)), ("mlp", -1)):
                name = hook_name(layer, kind)
                if slope.get(name) is not None:
                    own, to = trace[name].detach(), getattr(self.replacement, kind)[layer]
                    change = slope[name] * (to[:, -own.shape[1] :] - own)
                    # z: [n, pos, head, d_head] to [head, n]; MLP: [n, pos, d_model] to [n]
                    change = change.sum((1, 3)).T if kind == "z" else change.sum((1, 2))
                    effects[layer, place] = change.cpu()
        return effects

    def first(self, rows: int) -> "Evaluator":
        """This evaluator on its first prompts; on all when ``rows`` is 0 or exceeds them."""
        return self.with_(rows=range(rows)) if 0 < rows < len(self.prompts) else self

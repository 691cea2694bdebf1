"""One door to every method that scores components: ``scores(model, clean, corrupted, metric, …)``.

A score says how much a component is worth: about what the metric loses when the component's write
is replaced, or, for the searches, how late it was let go of. More is better; below zero is what
speaks against the answer. Only the order of a search's scores means something.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.ablation.engine import Replay, fitting
from seqcirc_utils.ablation.evaluator import GRADIENT_BATCH, Evaluator, Metric, logit_difference
from seqcirc_utils.ablation.replay import Activations
from seqcirc_utils.choices import ALONE, MEMBERS
from seqcirc_utils.circuits import search
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.methods.relevance import relevance_rules
from seqcirc_utils.methods.slopes import Pairs, products, slopes
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts

BACKWARD = 2
"""Forward passes that a backward pass counts as."""
LAYER_STEPS = 1
"""Points between corrupted and clean write where every layer needs its own passes: the middle."""


@dataclass(frozen=True)
class Scored:
    """What a method says.

    Attributes:
        method: Its name.
        values: Scores ``[component]``, in the order of
            :func:`~seqcirc_utils.components.components`.
        passes: What it costs, in forward passes of the whole model on one prompt (a backward pass
            counts as two), as a plain program would need them.
        seconds: Processor time that it took here.
    """

    method: str
    values: np.ndarray
    passes: float
    seconds: float


@dataclass
class Question:
    """What a method is asked: of which model, on which prompts, with which settings."""

    model: Model
    clean: Prompts
    corrupted: Prompts
    metric: Metric
    means: Activations | None
    n_steps: int
    threshold: float
    seed: int
    known: dict[str, Scored] = field(default_factory=dict)

    @cached_property
    def pairs(self) -> Pairs:
        """Both runs of the prompts."""
        return Pairs.recorded(self.model, self.clean, self.corrupted, self.metric)

    @cached_property
    def ablating(self) -> Evaluator:
        """The clean prompts, with mean ablation."""
        means = self.pairs.corrupted.activations.mean() if self.means is None else self.means
        return self.pairs.clean.with_(replacement=means)

    @property
    def size(self) -> int:
        """How many components there are."""
        return len(components(self.model))


Answer = tuple[torch.Tensor, float]
"""Scores ``[component]`` or ``[component, n]``, and the passes that they cost for each prompt."""


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Attributes:
        ask: Computes it.
        source: Where it was published.
    """

    ask: Callable[[Question], Answer]
    source: str

    @property
    def summary(self) -> str:
        """What it does, in a sentence."""
        return " ".join((self.ask.__doc__ or "").split("\n\n")[0].split())


METHODS: dict[str, Method] = {}
"""The methods, by name."""


def _method(name: str, source: str) -> Callable:
    def enter(ask: Callable[[Question], Answer]) -> Callable[[Question], Answer]:
        METHODS[name] = Method(ask, source)
        return ask

    return enter


def scores(
    model: Model,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric = logit_difference,
    *,
    method: str = "attribution patching",
    means: Activations | None = None,
    n_steps: int = 5,
    threshold: float = 0.8,
    seed: int = 0,
    known: Mapping[str, Scored] | None = None,
) -> Scored:
    """Score every component of a model by one method.

    Args:
        model: The model, weights unprocessed.
        clean: Prompts to explain.
        corrupted: Their partners, row by row.
        metric: What is explained, of the last stream. (The searches among the methods know the
            logit difference only.)
        method: A name of :data:`METHODS`.
        means: What mean ablation puts in place; the mean over ``corrupted`` when ``None``.
        n_steps: Points on the way from corrupted to clean embedding.
        threshold: What a search keeps, of the logit difference.
        seed: Draws the random scores.
        known: Scores that were computed before, of the same; the ensemble takes its members' here.

    Raises:
        UserError: for an unknown method, or prompts that do not fit.
        CannotDo: for a method that does not apply to the model.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    question = Question(
        model, clean, corrupted, metric, means, n_steps, threshold, seed, dict(known or {})
    )
    begun = time.process_time()
    values, passes = METHODS[method].ask(question)
    spent = time.process_time() - begun
    if method == ENSEMBLE:  # what its members cost, whoever asked them
        spent = sum(question.known[name].seconds for name in MEMBERS)
    values = values.detach().cpu().double()  # some GPUs have no float64
    whole = values if values.ndim == 1 else values.mean(1)
    return Scored(method, whole.numpy(), passes * len(clean), spent)


def by_prompt(
    model: Model,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric = logit_difference,
    *,
    method: str,
    n_steps: int = 5,
) -> np.ndarray:
    """Scores of every component for each prompt ``[component, n]``; arguments as :func:`scores`.

    Raises:
        UserError: as :func:`scores` does, for a method that scores all prompts together, and for
            prompts without partners.
    """
    if method not in ALONE:
        raise unknown("method that scores each prompt by itself", method, ALONE)
    if len(clean) != len(corrupted):
        said = f"{len(clean)} prompts have {len(corrupted)} partners"
        raise UserError(f"{said}: one each is needed.")
    found = []
    batches = torch.arange(len(clean)).split(fitting(model, GRADIENT_BATCH))
    for rows in map(torch.Tensor.tolist, batches):
        question = Question(model, clean[rows], corrupted[rows], metric, None, n_steps, 0.8, 0)
        found.append(METHODS[method].ask(question)[0].detach().cpu().double().numpy())
    return np.concatenate(found, 1)


def _alone(evaluator: Evaluator, metric: Metric) -> torch.Tensor:
    """The metric with each component replaced, less the metric with none ``[component, n]``."""
    sets: list[list[Component]] = [[], *([c] for c in components(evaluator.model))]
    (found,) = evaluator.each(sets, lambda stream: (metric(evaluator, stream).cpu(),))
    return found[1:] - found[0]


@_method("exact ablation", "Wang et al., 2022 (mean ablation); Lan et al., 2024")
def _exact_ablation(asked: Question) -> Answer:
    """What the metric loses when the component writes its mean over corrupted prompts.

    One pass for each component.
    """
    return -_alone(asked.ablating, asked.metric), asked.size + 1


@_method("activation patching", "Meng et al., 2022; Heimersheim and Nanda, 2024")
def _activation_patching(asked: Question) -> Answer:
    """What the metric of the corrupted run gains when the component's clean write is put into it.

    One pass for each component.
    """
    pairs = asked.pairs
    own = pairs.clean.run.activations
    restoring = Evaluator(
        asked.model, asked.corrupted, own, answers=asked.clean, run=pairs.corrupted
    )
    restoring.reference = pairs.clean.reference  # the clean run is what is explained
    return _alone(restoring, asked.metric), asked.size + 2


@_method("attribution patching", "Nanda, 2023; Syed et al., 2023 (EAP, summed over edges)")
def _attribution_patching(asked: Question) -> Answer:
    """Clean minus corrupted write, times the gradient of the metric in the clean run."""
    pairs = asked.pairs
    slope, _ = slopes(pairs, pairs.between(1.0))
    return products(pairs.difference, slope), 2 + BACKWARD


def steps(n: int) -> list[tuple[float, float]]:
    """Places between 0 and 1, with weights, of the Gauss-Legendre rule with ``n`` points."""
    places, weights = np.polynomial.legendre.leggauss(n)
    return list(zip(((places + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


@_method("EAP-IG inputs", "Hanna et al., 2024")
def _ig_inputs(asked: Question) -> Answer:
    """Clean minus corrupted write, times the mean gradient while the embedding goes from one to
    the other.

    The mean is an integral (Gauss-Legendre; the released code takes a sum of evenly spaced points).
    """
    pairs, total = asked.pairs, 0.0
    for place, weight in steps(asked.n_steps):
        slope, _ = slopes(pairs, pairs.between(place))
        total = total + weight * products(pairs.difference, slope)
    assert isinstance(total, torch.Tensor)
    return total, 2 + asked.n_steps * (1 + BACKWARD)


@_method("EAP-IG activations", "Hanna et al., 2024; Marks et al., 2024")
def _ig_activations(asked: Question) -> Answer:
    """Clean minus corrupted write, times the gradient while the writes of this layer's heads (or
    its MLP) are on the way from one to the other and all else stays clean.

    Every layer needs passes of its own, so the mean is taken at :data:`LAYER_STEPS` points.
    """
    pairs, model = asked.pairs, asked.model
    total = torch.zeros(asked.size, len(asked.clean))
    layers, heads = model.n_layers, model.n_heads
    for place, weight in steps(LAYER_STEPS):
        change = pairs.difference * (place - 1)
        own = pairs.clean.run.activations
        moved = Activations(own.z + change.z, own.mlp + change.mlp)
        for layer in range(layers):
            begin = layer * (heads + 1)
            slope = _layer_slope(pairs, moved, layer, "z")
            part = torch.einsum("nphd,nphd->hn", pairs.difference.z[layer], slope)
            total[begin : begin + heads] += weight * part.cpu()
            slope = _layer_slope(pairs, moved, layer, "mlp")
            part = torch.einsum("npd,npd->n", pairs.difference.mlp[layer], slope)
            total[begin + heads] += weight * part.cpu()
    return total, 2 + 2 * layers * LAYER_STEPS * (1 + BACKWARD)


def _layer_slope(pairs: Pairs, moved: Activations, layer: int, kind: str) -> torch.Tensor:
    """The metric's slope at one layer's heads or MLP, with these writes there, all else clean."""
    with torch.enable_grad():
        kinds = {"z": moved.z, "mlp": moved.mlp}
        leaf = kinds[kind][layer].clone().requires_grad_()
        kinds[kind] = torch.cat([kinds[kind][:layer], leaf[None], kinds[kind][layer + 1 :]])
        masks = pairs.nothing()
        masks[kind == "mlp"][layer] = True
        runner = Replay(pairs.clean.run, Activations(**kinds))
        final = runner.replay([masks], pairs.clean.run.residual[layer], layer)
        (slope,) = torch.autograd.grad(pairs.metric(pairs.clean, final).sum(), leaf)
    return slope


@_method("clean-corrupted", "Hanna et al., 2024 (released code, MIB's baseline)")
def _clean_corrupted(asked: Question) -> Answer:
    """Clean minus corrupted write, times the mean of the gradients in the two runs."""
    pairs = asked.pairs
    two = [slopes(pairs, pairs.between(share))[0] for share in (0.0, 1.0)]
    both = [products(pairs.difference, slope) for slope in two]
    return (both[0] + both[1]) / 2, 2 + 2 * BACKWARD


@_method("RelP", "Jafari et al., 2025")
def _relp(asked: Question) -> Answer:
    """Clean minus corrupted write, times the propagation coefficient of relevance in the clean run.

    See :func:`~seqcirc_utils.methods.relevance.relevance_rules`.
    """
    pairs = asked.pairs
    pairs.difference  # noqa: B018 (recorded before the rules hold)
    with relevance_rules(asked.model):
        slope, _ = slopes(pairs, pairs.between(1.0))
    return products(pairs.difference, slope), 2 + BACKWARD


ENSEMBLE = "ensemble"


@_method(ENSEMBLE, "Mondorf et al., 2025 (parallel ensemble, mean)")
def _ensemble(asked: Question) -> Answer:
    """The mean of the four gradient methods' scores, each divided by its root mean square."""
    for name in MEMBERS:
        if name not in asked.known:
            asked.known[name] = scores(
                *(asked.model, asked.clean, asked.corrupted, asked.metric),
                method=name,
                n_steps=asked.n_steps,
            )
    parts = [asked.known[name] for name in MEMBERS]
    mean = sum(p.values / max(np.sqrt(np.mean(p.values**2)), 1e-30) for p in parts) / len(parts)
    return torch.as_tensor(mean), sum(p.passes for p in parts) / len(asked.clean)


@_method("published sweep", "Lan et al., 2024; Conmy et al., 2023")
def _sweep(asked: Question) -> Answer:
    """How late the published search lets go of it; what it keeps comes last, by what is left
    without it.
    """
    found = search.sweep(asked.ablating, asked.threshold)
    return order_of_removal(components(asked.model), found.steps), float(found.trials)


@_method("ranked search", "this book")
def _ranked(asked: Question) -> Answer:
    """How late this book's search lets go of it, which asks a gradient what to try next; what it
    keeps comes last, by what is left without it.
    """
    found = search.ranked(asked.ablating, asked.threshold)
    passes = ranked_passes(found.steps, len(asked.clean)) / len(asked.clean)
    return order_of_removal(components(asked.model), found.steps), passes


@_method("random", "none")
def _random(asked: Question) -> Answer:
    """Numbers drawn at random: what a method must beat."""
    return torch.rand(asked.size, generator=derive_generator(asked.seed, "random scores")), 0.0


def ranked_passes(trials: Sequence[Mapping[str, Any]], prompts: int, rows: int = 8) -> float:
    """What a ranked search costs: a pass a trial and prompt, and its gradients.

    It estimates anew after every group that goes, at the start, and when the rule changes.
    """
    groups = sum(bool(t["removed"]) and t["phase"] == "groups" for t in trials)
    return len(trials) * prompts + (groups + 2) * (1 + BACKWARD) * min(rows, prompts)


def order_of_removal(
    everything: Sequence[Component], trials: Sequence[Mapping[str, Any]]
) -> torch.Tensor:
    """A search's trials as scores ``[component]``: 1, 2, … in the order of removal.

    What was kept stands above, ordered by the share that was left when it was last tried alone: the
    less, the higher. What was kept but never tried alone stands between.

    Args:
        everything: All components.
        trials: ``component`` (names of a group), ``score``, ``removed``, as a search notes them.
    """
    gone: list[str] = []
    left: dict[str, float] = {}
    for trial in trials:
        names = str(trial["component"]).split()
        if trial["removed"]:
            gone += names
        elif len(names) == 1:
            left[names[0]] = float(trial["score"])
    place = {name: i + 1.0 for i, name in enumerate(gone)}
    kept = [str(c) for c in everything if str(c) not in place]
    kept.sort(key=lambda name: -left.get(name, float("inf")))
    place |= {name: len(gone) + i + 1.0 for i, name in enumerate(kept)}
    return torch.tensor([place[str(c)] for c in everything])

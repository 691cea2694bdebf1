"""Does a circuit alone say what the whole model says, also where the model is wrong?

The prompts are a pool of several sentence templates and sequence lengths, so that the model makes
mistakes. A circuit is run with everything else mean-ablated; the baseline is random circuits with
as many heads in each layer and the same MLPs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from tqdm import tqdm

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import Activations, mean_activations
from seqcirc_utils.choices import LONGEST
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.drawing import clean_prompts, prompt_sets
from seqcirc_utils.prompts.prompts import Prompts
from seqcirc_utils.prompts.sequences import TEMPLATES
from seqcirc_utils.prompts.vocabulary import vocabulary
from seqcirc_utils.statistics import finite, percentile_p, rate


class Cell(NamedTuple):
    """Prompts of one template and length, and what replaced components write there (a mean)."""

    prompts: Prompts
    means: Activations


def pool(
    model: Model,
    task: str,
    n: int,
    *,
    n_means: int,
    templates: Sequence[str],
    lengths: Sequence[int],
    seed: int = 0,
) -> tuple[list[Cell], dict[str, str]]:
    """``n`` clean prompts of every template and length, with means of the same template.

    Few prompts are spread over the whole sequence: its end is harder than its beginning.

    A prompt of fewer members is the beginning of a longer one, token by token, and attention looks
    back only: the means of a shorter prompt are the first positions of the longest one's.

    Returns:
        The cells, and why others are left out: ``"template, length"`` to reason.

    Raises:
        UserError: for an unknown template, or a length outside 1 to :data:`LONGEST`.
    """
    for template in templates:
        if template not in TEMPLATES:
            raise unknown("template", template, TEMPLATES)
    if not all(1 <= length <= LONGEST for length in lengths):
        raise UserError(f"lengths must be from 1 to {LONGEST} members, got {list(lengths)}.")
    cells, left_out = [], {}
    for template in templates:
        means = None
        for length in lengths:
            try:
                if means is None:
                    corrupted = prompt_sets(
                        model, task, n_prompts=1, n_means=n_means, seed=seed, templates=(template,)
                    ).means
                    means = mean_activations(model, corrupted)
                starts = len(vocabulary(task, model.tokenizer).starts(length))
                prompts = clean_prompts(
                    model, task, max(n, starts), seed=seed, templates=(template,), n_members=length
                )
            except UserError as error:
                left_out[f"{template}, {length} members"] = str(error)
                continue
            spread = np.linspace(0, len(prompts) - 1, n).round().astype(int)
            prompts = prompts[np.argsort(prompts.starts, kind="stable")[spread].tolist()]
            pos = prompts.tokens.shape[1]
            cells.append(Cell(prompts, Activations(means.z[:, :, :pos], means.mlp[:, :, :pos])))
    return cells, left_out


@dataclass(frozen=True)
class Said:
    """What a model, or a circuit, says at the end of each prompt: three ``[..., n]`` tensors.

    Attributes:
        token: Top token of the whole vocabulary.
        member: Top token among the task's members.
        logit_diff: logit(answer) - logit(last member).
    """

    token: torch.Tensor
    member: torch.Tensor
    logit_diff: torch.Tensor

    def __getitem__(self, row: int | slice) -> "Said":
        """One row of the first axis, or some."""
        return Said(*(value[row] for value in vars(self).values()))

    @classmethod
    def join(cls, parts: Sequence["Said"]) -> "Said":
        """Prompts of several cells, one after another."""
        return cls(*(torch.cat([getattr(p, f) for p in parts], -1) for f in cls.__annotations__))


def said(evaluator: Evaluator, circuits: Iterable[Iterable[Component]], members: list[int]) -> Said:
    """What circuits say, everything outside each being replaced.

    Args:
        evaluator: Holds prompts and replacement.
        circuits: Sets of components; all components make the whole model.
        members: Token ids of the task's members.

    Returns:
        Answers ``[circuit, n]``.

    Raises:
        UserError: for an unknown component, or logits that are not finite.
    """
    prompts, ids = evaluator.prompts, torch.tensor(members)
    each = torch.arange(len(prompts))

    def read(stream: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = finite(evaluator.logits(stream).float().cpu())  # [circuit, n, vocab]
        answer, last = (logits[:, each, i] for i in (prompts.answer_ids, prompts.last_ids))
        return logits.argmax(-1), ids[logits[..., ids].argmax(-1)], answer - last

    return Said(*evaluator.each(evaluator.outside(circuits), read))


def predict(
    model: Model,
    cells: Sequence[Cell],
    circuits: Sequence[Iterable[Component]],
    members: list[int],
    progress: str = "Prediction",
) -> list[Said]:
    """What the whole model (row 0) and then each circuit says, per cell: ``[1 + circuit, n]``."""
    everything = components(model)
    found = []
    for cell in tqdm(cells, desc=progress, unit="cell"):
        evaluator = Evaluator(model, cell.prompts, cell.means)
        found.append(said(evaluator, [everything, *circuits], members))
    return found


def agreement_table(
    answer_ids: torch.Tensor, whole: Said, circuit: Said, random: Said, seed: int = 0
) -> pd.DataFrame:
    """How far the circuit agrees with the whole model, beside random circuits.

    Args:
        answer_ids: The right answers ``[n]``.
        whole: What the whole model says ``[n]``.
        circuit: What the circuit says ``[n]``.
        random: What random circuits say ``[draw, n]``.
        seed: Of the bootstrap.

    Returns:
        Rows of ``measure`` and ``subset`` (all prompts, those the model gets right, wrong), with
        ``agreement``, 95% interval over prompts, mean of the random circuits, one-sided ``p`` and
        ``n``. Measures ``member`` and ``vocabulary``: share of prompts with the same top token
        (among members, among all tokens), exact interval. ``logit_diff``: Pearson correlation of
        logit differences; ``errors``: correlation (phi) of whether each is right, by vocabulary.
        Undefined figures (no such prompt, no variation) are NaN.
    """
    rows = []

    def add(measure: str, subset: str, value: float, low: float, high: float, null, n: int):
        null = np.asarray(null, float)
        null = null[~np.isnan(null)]
        mean = float(null.mean()) if n and len(null) else np.nan
        p = percentile_p(value, null) if np.isfinite(value) and len(null) else np.nan
        rows.append((subset, value, low, high, mean, p, n, measure))

    for measure, name in (("member", "member"), ("vocabulary", "token")):
        own, other, drawn = (getattr(s, name) for s in (whole, circuit, random))
        right = own == answer_ids
        for subset, rows_of in (("all", right | True), ("right", right), ("wrong", ~right)):
            same, null = (own == other)[rows_of], (own == drawn)[:, rows_of]
            n = len(same)
            found = rate(same) if n else None
            ends = (found.mean, found.low, found.high) if found else (np.nan,) * 3
            add(measure, subset, *ends, null.double().mean(1) if n else np.zeros(len(null)), n)
    pairs = {
        "logit_diff": [s.logit_diff for s in (whole, circuit, random)],
        "errors": [s.token == answer_ids for s in (whole, circuit, random)],
    }
    for measure, (own, other, drawn) in pairs.items():
        own, other, drawn = (v.double().numpy() for v in (own, other, drawn))
        value, low, high = _correlation(own, other, seed)
        # One that is always wrong, or right, has no correlation: it is no draw.
        null = [_pearson(own, draw) for draw in drawn]
        add(measure, "all", value, low, high, null, len(own))
    columns = ["subset", "agreement", "low", "high", "random_mean", "p", "n", "measure"]
    return pd.DataFrame(rows, columns=columns)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _correlation(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float, float]:
    value = _pearson(x, y)
    if np.isnan(value):
        return value, value, value
    # A resample without variation says nothing; counting it as 0 keeps the interval honest.
    ci = bootstrap(
        (x, y),
        lambda a, b: np.nan_to_num(_pearson(a, b)),
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return value, float(ci.low), float(ci.high)


def spread(wrong: Sequence[torch.Tensor], limit: int) -> list[list[int]]:
    """Choose at most ``limit`` wrong prompts, taking turns among the cells.

    Args:
        wrong: Per cell, which prompts are wrong ``[n]``.
        limit: How many.

    Returns:
        Per cell, the chosen rows.
    """
    left = [cell.nonzero().flatten().tolist() for cell in wrong]
    turns = sorted((k, i) for i, rows in enumerate(left) for k in range(len(rows)))[:limit]
    return [[left[i][k] for k, cell in turns if cell == i] for i in range(len(left))]


class Turning(NamedTuple):
    """What ablating components one by one does to a wrong answer.

    Attributes:
        margin: logit(what the model said) - logit(answer), positive.
        effect: Component to how far it raises that margin: the margin minus that without it. Only
            the components that were tried, the strongest first.
        mended: Whether the model says the answer without it, in the same order.
    """

    margin: float
    effect: dict[Component, float]
    mended: list[bool]


def turning(model: Model, cell: Cell, row: int, token: int, n_tried: int = 12) -> Turning:
    """Find the components that turn one wrong answer.

    A first-order estimate ranks all components; the first ``n_tried`` are ablated one by one.

    Args:
        model: The model.
        cell: Prompts and means.
        row: The prompt.
        token: What the model says on it.
        n_tried: How many are ablated.
    """
    prompt = cell.prompts[[row]]
    rivals = replace(prompt, last_ids=torch.tensor([token]))
    evaluator = Evaluator(model, prompt, cell.means, answers=rivals)
    estimate = evaluator.estimate()
    names = sorted(estimate, key=estimate.__getitem__, reverse=True)[:n_tried]
    without = evaluator.replaced([[name] for name in names])
    margin = -evaluator.intact.logit_diff.item()
    effect = (margin + without.logit_diff[:, 0]).tolist()
    order = sorted(range(len(names)), key=lambda i: -effect[i])
    mended = without.correct[:, 0].tolist()
    return Turning(margin, {names[i]: effect[i] for i in order}, [mended[i] for i in order])


def error_table(
    model: Model,
    cells: Sequence[Cell],
    whole: Sequence[Said],
    circuit: Sequence[Said],
    inside: set[Component],
    limit: int,
    progress: str = "Errors",
) -> pd.DataFrame:
    """Prompts the model gets wrong (top token of the vocabulary), and what turns them.

    Args:
        model: The model.
        cells: The pool.
        whole: What the model says, per cell ``[n]``.
        circuit: What the circuit says, per cell ``[n]``.
        inside: The circuit.
        limit: The most prompts that are looked into, taking turns among the cells.
        progress: Label of the progress bar.

    Returns:
        One row per prompt: ``prompt``, ``answer``, ``said``, ``circuit_said``, ``margin`` (logits),
        ``component`` (that which raises the wrong answer over the right one the most), ``effect``
        (logits), ``mended`` (the model is right without it), ``n_mending`` (of how many of the
        components tried that is true), ``in_circuit``.
    """
    wrong = [s.token != c.prompts.answer_ids for c, s in zip(cells, whole, strict=True)]
    chosen = spread(wrong, limit)
    rows = []
    bar = tqdm(total=sum(map(len, chosen)), desc=progress, unit="prompt")
    with bar:
        for cell, own, other, picked in zip(cells, whole, circuit, chosen, strict=True):
            for row in picked:
                found = turning(model, cell, row, int(own.token[row]))
                component, effect = next(iter(found.effect.items()))
                says = [model.tokenizer.decode([int(s.token[row])]).strip() for s in (own, other)]
                rows.append(
                    {
                        "prompt": cell.prompts.texts[row],
                        "answer": cell.prompts.answers[row],
                        "said": says[0],
                        "circuit_said": says[1],
                        "margin": found.margin,
                        "component": str(component),
                        "effect": effect,
                        "mended": found.mended[0],
                        "n_mending": sum(found.mended),
                        "in_circuit": component in inside,
                    }
                )
                bar.update()
    return pd.DataFrame(rows)

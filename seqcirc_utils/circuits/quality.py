"""How good a circuit is, on prompts it was not found with.

Faithful (it does what the model does), complete (what is left out does not), minimal (nothing in it
is idle), better than random circuits of its shape, and the same when found again.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control, wilcoxon
from tqdm import tqdm
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.pruning import Pruning
from seqcirc_utils.ablation.replay import Activations, mean_activations
from seqcirc_utils.circuits.search import Discovery, ranked, shuffled_orders, sweep
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import CannotDo
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts, PromptSets
from seqcirc_utils.statistics import (
    Interval,
    interval,
    over_groups,
    positive_baseline,
    rate,
    ratios,
)


def quality(
    evaluator: Evaluator, circuit: Iterable[Component], seed: int = 0
) -> dict[str, dict[str, float]]:
    """A circuit's scores with 95% intervals over prompts.

    Returns:
        ``faithfulness`` (share of the whole model's mean logit difference), ``by_start`` (the same,
        where starts count as drawn; only of several), ``distance`` (|whole - kept| prompt by
        prompt, its mean over the same), ``kl`` (nats, to the whole model), ``accuracy``,
        ``completeness`` (what is left when the circuit itself is ablated, as a share: low is good),
        each a mapping with ``mean``, ``low``, ``high``.

    Raises:
        UserError: when the whole model's mean logit difference is not positive.
    """
    circuit = set(circuit)
    positive_baseline(evaluator.intact.logit_diff, "the whole model")
    kept = evaluator.kept([circuit])[0]
    rest = evaluator.replaced([circuit])[0]
    distance = (kept.logit_diff - evaluator.intact.logit_diff).abs()
    found = {
        "faithfulness": _share(kept.logit_diff, evaluator.intact.logit_diff, seed),
        "distance": _share(distance, evaluator.intact.logit_diff, seed),
        "kl": interval(kept.kl, seed),
        "accuracy": rate(kept.correct),
        "completeness": _share(rest.logit_diff, evaluator.intact.logit_diff, seed),
    }
    starts = evaluator.prompts.starts
    if len(set(starts)) > 1:
        low, high = over_groups(kept.logit_diff[None], evaluator.intact.logit_diff, starts)
        found["by_start"] = Interval(found["faithfulness"].mean, low.item(), high.item())
    return {name: vars(value) for name, value in found.items()}


def _share(kept: torch.Tensor, whole: torch.Tensor, seed: int) -> Interval:
    """The mean of ``[n]`` logit differences over the whole model's, prompts resampled for both."""
    return Interval(*(bound.item() for bound in ratios(kept[None], whole, seed)))


def minimality(
    evaluator: Evaluator,
    circuit: Iterable[Component],
    *,
    seed: int = 0,
    progress: str | None = None,
) -> pd.DataFrame:
    """What each component of a circuit contributes to it.

    Returns:
        A row per component, the most needed first: ``component``, ``change`` (of faithfulness when
        it is removed from the circuit) with its 95% interval ``low`` and ``high``, ``p`` (Wilcoxon
        signed rank over prompts, one-sided: the logit difference falls), ``q`` (Benjamini-Hochberg
        over the circuit).

    Raises:
        CannotDo: for an empty circuit.
    """
    circuit = sorted(set(circuit))
    if not circuit:
        raise CannotDo(
            "The circuit is empty: the model keeps its score with everything ablated, so no "
            "component can be shown to be needed. Choose another task or model."
        )
    positive_baseline(evaluator.intact.logit_diff, "the whole model")
    outside = set(components(evaluator.model)) - set(circuit)
    pruning = Pruning(evaluator, outside)
    full = pruning.score
    rows = []
    for component in tqdm(circuit, desc=progress, unit="set", disable=progress is None):
        change = pruning.try_without([component]) - full
        moved = change.abs().max() > 0 and len(change) > 1
        p = wilcoxon(change.numpy(), alternative="less").pvalue if moved else 1.0
        share = _share(change, evaluator.intact.logit_diff, seed)
        rows.append((str(component), share.mean, share.low, share.high, p))
    frame = pd.DataFrame(rows, columns=["component", "change", "low", "high", "p"])
    frame["q"] = false_discovery_control(frame["p"])
    return frame.sort_values("change", kind="stable", ignore_index=True)


def curve(
    evaluator: Evaluator, ranking: Sequence[Component], sizes: Sequence[int]
) -> tuple[pd.DataFrame, float, float]:
    """Faithfulness by circuit size, and its areas.

    These are of the share kept; the MIB benchmark's CPR and CMD, which subtract the empty circuit,
    are in :mod:`seqcirc_utils.methods.benchmark`.

    Args:
        evaluator: Evaluation prompts.
        ranking: All components, the most important first.
        sizes: How many of them to keep; 0 and all are added.

    Returns:
        A table ``size``, ``faithfulness``; the area under faithfulness (more is better) and
        the area of |1 - faithfulness| (less is better), over the kept share of components.
    """
    whole = positive_baseline(evaluator.intact.logit_diff, "the whole model")
    sizes = sorted({0, len(ranking), *sizes})
    score = evaluator.differences(evaluator.outside(ranking[:size] for size in sizes))
    score = score.mean(1).numpy() / whole
    share = np.array(sizes) / len(ranking)
    cpr = float(np.trapezoid(score, share))
    cmd = float(np.trapezoid(np.abs(1 - score), share))
    return pd.DataFrame({"size": sizes, "faithfulness": score}), cpr, cmd


def by_ablation(
    model: Model,
    prompts: Prompts,
    replacements: Mapping[str, Activations],
    circuits: Mapping[str, Iterable[Component]],
    seed: int = 0,
) -> pd.DataFrame:
    """Each circuit under each kind of ablation.

    Returns:
        A row per pair: ``circuit``, ``ablation``, faithfulness ``mean``, ``low``, ``high``, ``kl``,
        ``accuracy``.
    """
    rows = []
    for kind, replacement in replacements.items():
        evaluator = Evaluator(model, prompts, replacement)
        whole = evaluator.intact.logit_diff
        positive_baseline(whole, "the whole model")
        for name, circuit in circuits.items():
            kept = evaluator.kept([circuit])[0]
            row = {"circuit": name, "ablation": kind}
            row |= vars(_share(kept.logit_diff, whole, seed))
            row |= {"kl": kept.kl.mean().item(), "accuracy": kept.correct.float().mean().item()}
            rows.append(row)
    return pd.DataFrame(rows)


def repeated(
    model: Model,
    draw: Callable[[int], PromptSets],
    n_prompts: int,
    threshold: float,
    repeats: int,
    seed: int,
    *,
    progress: str | None = None,
) -> pd.DataFrame:
    """Repeat the search.

    Args:
        model: The model.
        draw: The prompt sets that a seed draws.
        n_prompts: How many discovery prompts each search gets.
        threshold: Share of the logit difference to keep, in (0, 1].
        repeats: Searches of each kind; of random orders, which are slow, half as many (rounded up).
        seed: The run's own.
        progress: Label of a progress bar.

    Returns:
        A row per search: its ``kind``, its number in it (``repeat``) and the ``components`` found,
        names with a space between. ``prompts``: the ranked search on bootstrap resamples of the
        discovery prompts. ``seed``: the ranked search, all prompts drawn anew. ``order``: the
        published rule in random orders. A search that the model's score does not allow has no row.
    """

    def drawn(which: int) -> tuple[Prompts, Activations]:
        sets = draw(which)
        return sets.discovery, mean_activations(model, sets.means)

    prompts, means = drawn(seed)

    def search(kind: str, repeat: int) -> Discovery:
        rng = derive_generator(seed, kind, repeat)
        if kind == "seed":
            others, their_means = drawn(int(torch.randint(2**31, (1,), generator=rng)))
            return ranked(Evaluator(model, others[range(n_prompts)], their_means), threshold)
        if kind == "prompts":
            rows = torch.randint(n_prompts, (n_prompts,), generator=rng).tolist()
            return ranked(Evaluator(model, prompts[rows], means), threshold)
        own = Evaluator(model, prompts[range(n_prompts)], means)
        return sweep(own, threshold, orders=partial(shuffled_orders, rng))

    rows = []
    times = {"prompts": repeats, "seed": repeats, "order": (repeats + 1) // 2}
    todo = [(kind, repeat) for kind, n in times.items() for repeat in range(n)]
    for kind, repeat in tqdm(todo, desc=progress, unit="search", disable=progress is None):
        with contextlib.suppress(CannotDo):
            names = " ".join(sorted(map(str, search(kind, repeat).components)))
            rows.append({"kind": kind, "repeat": repeat, "components": names})
    return pd.DataFrame(rows, columns=["kind", "repeat", "components"])


def inclusion(searches: pd.DataFrame, everything: Sequence[Component]) -> pd.DataFrame:
    """How often each component is found again.

    Args:
        searches: What :func:`repeated` returns.
        everything: The model's components.

    Returns:
        A row per component: ``component``, and the share of searches that found it, over all
        (``inclusion``) and by kind; NaN where there was no search.
    """
    found = [set(names.split()) for names in searches["components"]]
    kinds = searches["kind"].tolist()
    table = pd.DataFrame({"component": list(map(str, everything))})
    for name in ("inclusion", "prompts", "seed", "order"):
        of_kind = [s for s, kind in zip(found, kinds, strict=True) if name in ("inclusion", kind)]
        table[name] = [
            np.mean([c in s for s in of_kind]) if of_kind else np.nan for c in table["component"]
        ]
    return table

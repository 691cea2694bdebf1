"""How a node circuit is found: the published sweeps, and a faster ranked search.

Both start from the whole model and remove components while the circuit's mean logit difference
stays at ``threshold`` of the whole model's. Both verify every removal exactly.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from seqcirc_utils import store
from seqcirc_utils.ablation.evaluator import Evaluator, Metric, logit_difference
from seqcirc_utils.ablation.pruning import Pruning
from seqcirc_utils.ablation.released import ReleasedPruning
from seqcirc_utils.ablation.replay import Run
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.models.loading import Model
from seqcirc_utils.statistics import positive_baseline


@dataclass(frozen=True)
class Goal:
    """What a circuit must keep a share of; the published one unless said otherwise.

    Attributes:
        metric: The metric.
        empty: Its mean that counts as nothing kept.
        name: What a log calls it.
    """

    metric: Metric = logit_difference
    empty: float = 0.0
    name: str = ""


@dataclass
class Discovery:
    """What a search found.

    Attributes:
        components: The circuit.
        score: Share of the whole model's mean logit difference (or of another goal) that it keeps,
            on the prompts it was found with.
        steps: One entry per trial: ``phase``, ``component`` or group ``size``, ``score`` (share)
            without it, ``removed``.
    """

    components: set[Component]
    score: float
    steps: list[dict[str, Any]] = field(repr=False)

    @property
    def trials(self) -> int:
        """How many circuits were evaluated."""
        return len(self.steps)

    def frame(self) -> pd.DataFrame:
        """The trials as a table."""
        return pd.DataFrame(self.steps)


class Search:
    """A pruning with a threshold, a log that survives interruption, and a progress bar.

    The log holds every trial's outcome; a continued search replays it without computing.

    Args:
        evaluator: Discovery prompts, and what replaces a removed component.
        kind: Name of the search.
        threshold: Share of the whole model's mean logit difference to keep, in (0, 1].
        two_sided: Also refuse removals that overshoot ``2 - threshold``.
        checkpoint: File of the log.
        progress: Label of the progress bar.
        goal: What to keep a share of.

    Raises:
        UserError: for a threshold outside (0, 1], or a whole model whose mean logit difference (or
            lead over nothing kept) is not positive.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        kind: str,
        threshold: float,
        two_sided: bool,
        checkpoint: Path | None,
        progress: str | None,
        goal: Goal = Goal(),
    ) -> None:
        if not 0 < threshold <= 1:
            raise UserError(f"threshold must be in (0, 1], got {threshold}.")
        self.evaluator, self.goal = evaluator, goal
        self.whole = _baseline(evaluator, goal)
        self.least, self.most = threshold, 2 - threshold if two_sided else float("inf")
        of = goal.name, goal.empty
        self.log = Log(checkpoint, evaluator, kind, threshold, two_sided, *of)
        self.known: list[dict[str, Any]] = self.log.read().get("steps", [])
        self.steps: list[dict[str, Any]] = []
        self.out: set[Any] = set()  # components; a search over edges: edges
        self.score = 1.0
        self._pruning: Any = None
        self.bar = tqdm(desc=progress, unit="trial", disable=progress is None)

    def begin(self) -> Any:
        """The pruning that tries and accepts removals."""
        return Pruning(self.evaluator, self.out, self.goal.metric)

    def left(self) -> list[Any]:
        """What has not been removed, in the model's order."""
        return [c for c in components(self.evaluator.model) if c not in self.out]

    def remove(self, names: Sequence[Any], phase: str) -> bool:
        """Try to remove components together; tell whether they are gone."""
        label = " ".join(map(str, names))
        step: dict[str, Any]
        if len(self.steps) < len(self.known):
            step = self.known[len(self.steps)]
            if step["component"] != label:
                self.known = self.known[: len(self.steps)]
                return self.remove(names, phase)
        else:
            if self._pruning is None:
                self._pruning = self.begin()
            value = self._pruning.try_without(names).mean().item()
            score = (value - self.goal.empty) / self.whole
            gone = self.least <= score <= self.most
            if gone:
                self._pruning.accept()
            step = {"phase": phase, "component": label, "size": len(names)}
            step |= {"score": score, "removed": gone}
        self.steps.append(step)
        if step["removed"]:
            self.out |= set(names)
            self.score = step["score"]
        if len(self.steps) > len(self.known):
            self.log.write(steps=self.steps)
        self.bar.set_postfix_str(f"{phase}: {len(self.left())} left, {self.score:.0%}", False)
        self.bar.update()
        return step["removed"]

    def found(self) -> Discovery:
        """What is left; ends the search."""
        self.bar.close()
        return Discovery(set(self.left()), self.score, self.steps)


def _baseline(evaluator: Evaluator, goal: Goal) -> float:
    """What the whole model has of the goal, in the metric's unit.

    Raises:
        CannotDo: where that is not positive.
    """
    if goal == Goal():
        return positive_baseline(evaluator.intact.logit_diff, "the whole model")
    whole = Pruning(evaluator, metric=goal.metric).score.mean().item() - goal.empty
    if not whole > 0:
        raise CannotDo(f"the whole model is not ahead of the empty circuit by the {goal.name}.")
    return whole


class _ReleasedSearch(Search):
    """A search whose means shift as in the released code."""

    def __init__(self, corrupted: Run, *settings: Any) -> None:
        self.corrupted = corrupted
        super().__init__(*settings)

    def begin(self) -> ReleasedPruning:
        return ReleasedPruning(self.evaluator, self.corrupted, self.out)


# A log is continued only by the code that began it.
_CODE = hashlib.sha256(
    b"".join(
        path.read_bytes()
        for room in ("ablation", "circuits", "prompts")
        for path in sorted((Path(__file__).parents[1] / room).glob("*.py"))
    )
).hexdigest()


class Log:
    """A file that an interrupted search continues from.

    It belongs to code, model, prompts, replacement and settings: with others it begins anew.

    Args:
        path: The file; ``None``: nothing is kept.
        evaluator: Model, prompts and replacement.
        settings: What else the results depend on.
    """

    def __init__(self, path: Path | None, evaluator: Evaluator, *settings: Any) -> None:
        self.path = path
        start = json.dumps([_CODE, evaluator.model.facts.sha256, *settings])
        digest = hashlib.sha256(start.encode())
        for tensor in (
            evaluator.prompts.tokens,
            evaluator.answers.answer_ids,
            evaluator.answers.last_ids,
            evaluator.replacement.mlp,
            evaluator.replacement.z,
        ):
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
        self.key = digest.hexdigest()

    def read(self) -> dict[str, Any]:
        """What was written; nothing for a file of another search, a damaged one, or none."""
        try:
            saved = store.read_json(self.path) if self.path else {}
        except UserError:
            return {}
        return saved if saved.get("key") == self.key else {}

    def write(self, **found: Any) -> None:
        """Write what was found so far."""
        if self.path:
            store.write_json(self.path, {"key": self.key} | found)


def published_orders(model: Model) -> Iterator[tuple[str, list[Component]]]:
    """The published sweeps, on and on: backward (MLP, then heads), forward (heads, then MLP)."""
    forward, heads = components(model), [None, *range(model.n_heads)]
    backward = [Component(layer, h) for layer in reversed(range(model.n_layers)) for h in heads]
    while True:
        yield "backward sweep", backward
        yield "forward sweep", forward


def shuffled_orders(rng: torch.Generator, model: Model) -> Iterator[tuple[str, list[Component]]]:
    """Sweeps on and on, each in a random order of its own."""
    everything = components(model)
    while True:
        order = torch.randperm(len(everything), generator=rng).tolist()
        yield "random sweep", [everything[i] for i in order]


def sweep(
    evaluator: Evaluator,
    threshold: float = 0.8,
    *,
    two_sided: bool = False,
    orders: Callable[[Model], Iterator[tuple[str, list[Component]]]] = published_orders,
    corrupted: Run | None = None,
    checkpoint: Path | None = None,
    progress: str | None = None,
) -> Discovery:
    """The published node search (paper, section on methods): sweep until a sweep changes nothing.

    Each component in turn is removed if the circuit without it keeps ``threshold`` of the whole
    model's mean logit difference.

    Args:
        evaluator: Discovery prompts, and what replaces a removed component.
        threshold: Share to keep, in (0, 1].
        two_sided: Also refuse removals that overshoot ``2 - threshold``; the published rule does
            not.
        orders: Names and orders of the sweeps.
        corrupted: The run of the corrupted prompts behind the evaluator's means: searches as the
            released code does, whose means of MLPs shift with the heads removed (B34).
        checkpoint: File that an interrupted search continues from.
        progress: Label of a progress bar.

    Raises:
        UserError: for a threshold outside (0, 1], a whole model whose mean logit difference is not
            positive, or logits that are not finite.
    """
    settings = threshold, two_sided, checkpoint, progress
    if corrupted is None:
        search = Search(evaluator, "sweep", *settings)
    else:
        search = _ReleasedSearch(corrupted, evaluator, "sweep as released", *settings)
    for phase, order in orders(evaluator.model):
        before = len(search.out)
        for component in order:
            if component not in search.out:
                search.remove([component], phase)
        if len(search.out) == before:
            return search.found()
    raise AssertionError("the orders of sweeps must not end")


def ranked(
    evaluator: Evaluator,
    threshold: float = 0.8,
    *,
    two_sided: bool = False,
    share: float = 0.25,
    rows: int = 8,
    goal: Goal = Goal(),
    first: Mapping[Component, float] | None = None,
    checkpoint: Path | None = None,
    progress: str | None = None,
) -> Discovery:
    """Remove groups of components by an estimate of what that does; at the end, one by one.

    The estimate (attribution patching at the present circuit) is made anew after every group. First
    go the components that it calls idle; from the first group that fails on, those that cost least,
    what speaks against the answer before all others. (The two-sided search goes on with the idle.)
    A group that passes is followed by one twice as large, one that fails by a quarter of it, and a
    component that fails alone is set aside. At the end every remaining component was tried alone,
    at the final circuit, and found to be needed.

    Args:
        evaluator: Discovery prompts, and what replaces a removed component.
        threshold: Share to keep, in (0, 1].
        two_sided: Also refuse removals that overshoot ``2 - threshold``.
        share: Largest group, as a share of what is left.
        rows: Prompts behind each estimate.
        goal: What to keep a share of.
        first: Every component's estimate to begin with, negative where removing it costs: for a
            metric that is flat where the model is whole.
        checkpoint: File that an interrupted search continues from.
        progress: Label of a progress bar.

    Raises:
        UserError: as :func:`sweep` does.
    """
    search = Search(evaluator, "ranked", threshold, two_sided, checkpoint, progress, goal)

    def estimate() -> Mapping[Component, float]:
        if first is not None and not search.out:
            return first
        return evaluator.estimate(search.out, rows, goal.metric)

    remove_in_groups(search, estimate, share, two_sided)
    return search.found()


def remove_in_groups(
    search: Search,
    estimate: Callable[[], Mapping[Any, float]],
    share: float,
    two_sided: bool = False,
    one_by_one: float = float("inf"),
) -> bool:
    """The ranked search itself, over components or edges, as :func:`ranked` tells it.

    Args:
        search: What tries the removals, and knows what is left.
        estimate: Makes the estimate of what each removal does anew; negative: it costs.
        share: Largest group, as a share of what is left.
        two_sided: Go on with the idle after the first group that fails.
        one_by_one: Most trials of single items.

    Returns:
        Whether all that is left was tried alone and found to be needed.
    """

    def order() -> list[Any]:
        known = estimate()
        # Idle parts first. Once the bar is reached, what speaks against the answer: it makes room.
        cost = (lambda c: -known[c]) if signed else (lambda c: abs(known[c]))
        return sorted(search.left(), key=cost)

    signed = False
    queue, size = order(), len(search.left())
    needed: dict[Any, float] = {}  # tried alone at the present circuit, with the score
    stale: dict[Any, float] = {}  # tried alone at an earlier one
    while queue:
        size = max(1, min(size, int(len(search.left()) * share)))
        if size == 1:
            if one_by_one <= 0:
                return False
            one_by_one -= 1
        group = queue[:size]
        if search.remove(group, "groups" if size > 1 else "one by one"):
            stale |= needed
            needed.clear()
            left = order() if size > 1 else queue[1:]
            queue = [c for c in left if c not in stale]
            size *= 2
        elif not (signed or two_sided):
            signed = True
            queue = order()
        elif size > 1:
            size //= 4  # each failure costs a pass, and so does each small group
        else:
            needed[group[0]] = search.steps[-1]["score"]
            queue = queue[1:]
        if not queue:  # the nearest misses first: what may go now goes early
            queue, stale = sorted(stale, key=lambda c: -stale[c]), {}
    return True

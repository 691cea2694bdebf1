"""What searches for circuits make of models whose circuit is known."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import pandas as pd
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.chapters.findings import Findings, each, table
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits.search import Discovery, ranked, shuffled_orders, sweep
from seqcirc_utils.components import Component, components
from seqcirc_utils.methods.recovery import recovery
from seqcirc_utils.planted.circuits import PLANTED, smallest, stand_ins

SEARCHES: dict[str, Callable[[Evaluator, float], Discovery]] = {
    "published sweep": sweep,
    "two-sided sweep": partial(sweep, two_sided=True),
    "ranked": partial(ranked, two_sided=True),
}
"""The searches, by name."""
JOINT = ("pair", "detour", "negative")
"""Models whose parts are ablated two at a time."""
PUBLISHED = 0.8
"""The threshold that is known what to find with."""
MOST_PROMPTS = 8
"""More would say the same: a planted model treats all alike."""


@dataclass(frozen=True, kw_only=True)
class GroundTruth(Findings):
    """What is in each planted model, and what each search says is in it.

    Components of a set stand in one text, as :func:`listed` writes them. All but ``searches`` and
    ``alone`` is of the first task.

    Attributes:
        searches: A row per model, task and search: the share of the logit difference (``score``)
            that its circuit keeps, how many circuits it tried, and whether it is one of the
            smallest.
        orders: The same of two-sided sweeps in random orders.
        methods: A row per model and method of chapter 10: the ``auroc`` of its scores' sizes for
            working against idle components, whether the largest are a smallest circuit
            (``recovered``), and ``why`` it does not apply.
        joint: What share of the logit difference is left with two components mean-ablated.
        alone: The same with one component mean-ablated, a row per model, task and component.
        accuracy: The share of prompts that the worst of the models answers rightly.
        stand_ins: By model, what takes over from a component of the ranked search's circuit.
        one_sided: What the ranked search keeps of the model with the negative head under the
            one-sided rule (``components``), and whether that is ``right``.
        zeroed: What it keeps of the signpost under zero ablation.
        threshold: The share that a circuit keeps.
    """

    stage = "00_ground_truth"

    searches: pd.DataFrame = table(
        "csv",
        each(str, "planted", "task", "search") | {"score": float, "components": str},
        size=int,
        trials=int,
        right=bool,
    )
    orders: pd.DataFrame = table(
        "orders.csv", planted=str, task=str, order=int, components=str, right=bool
    )
    methods: pd.DataFrame = table(
        "methods.csv", planted=str, method=str, auroc=float, recovered=bool, why=str
    )
    joint: pd.DataFrame = table("joint.csv", first=str, second=str, share=float, planted=str)
    alone: pd.DataFrame = table("alone.csv", planted=str, task=str, component=str, share=float)
    accuracy: float
    stand_ins: dict[str, str]
    one_sided: dict[str, Any]
    zeroed: str
    threshold: float

    @classmethod
    def measure(cls, at: Setting) -> Self:
        """Build the models, and search in them; see the class."""
        tasks, threshold = at["tasks"], at["threshold"]
        models = {(name, task): _evaluator(at, name, task) for task in tasks for name in PLANTED}
        first = {name: models[name, tasks[0]] for name in PLANTED}
        truth = {key: smallest(e, PLANTED[key[0]].circuit, threshold) for key, e in models.items()}
        found = {
            (*key, search): look(evaluator, threshold)
            for key, evaluator in models.items()
            for search, look in SEARCHES.items()
        }
        one_sided = ranked(first["negative"], threshold).components
        mark = first["signpost"]
        zero = Evaluator(mark.model, mark.prompts, mark.replacement.zero())
        alone = _alone(models)
        accuracy = min(e.intact.correct.float().mean().item() for e in models.values())
        _check(alone, accuracy)
        if threshold == PUBLISHED:
            _check_searches(truth, found)
        return cls(
            searches=_searches(found, truth),
            orders=_orders(first, truth, at),
            methods=pd.concat([_methods(at, name, first[name]) for name in PLANTED]),
            joint=pd.concat([_joint(name, first[name]) for name in JOINT]),
            alone=alone,
            accuracy=accuracy,
            stand_ins={
                name: listed(stand_ins(first[name], found[name, tasks[0], "ranked"].components))
                for name in PLANTED
            },
            one_sided={
                "components": listed(one_sided),
                "right": one_sided in truth["negative", tasks[0]],
            },
            zeroed=listed(ranked(zero, threshold, two_sided=True).components),
            threshold=threshold,
        )


def listed(names: Iterable[Component]) -> str:
    """Components in the order of computation, as in ``0.2 mlp0``; ``none`` for none."""
    return " ".join(map(str, sorted(names))) or "none"


def parsed(text: str) -> set[Component]:
    """The components that :func:`listed` wrote."""
    return set() if text == "none" else set(map(Component.parse, text.split()))


def _evaluator(at: Setting, name: str, task: str) -> Evaluator:
    """A planted model with mean ablation, on prompts to search with."""
    few = {**at.parameters, "n_prompts": min(at["n_prompts"], MOST_PROMPTS)}
    own = Setting(few, model=PLANTED[name].build(task))
    return Evaluator(own.model, own.sets(task).discovery, own.means(task))


def _methods(at: Setting, name: str, evaluator: Evaluator) -> pd.DataFrame:
    """What every method makes of one model of the first task."""
    known, few = PLANTED[name], {**at.parameters, "n_prompts": len(evaluator.prompts)}
    sets = Setting(few, model=evaluator.model).sets(at["tasks"][0])
    table = recovery(
        evaluator.model,
        sets,
        evaluator.replacement,
        known.circuit - known.unseen,
        known.smallest,
        at["threshold"],
        at["seed"],
    )
    return table.assign(planted=name)[["planted", *table.columns]]


def _alone(models: Mapping[tuple[str, str], Evaluator]) -> pd.DataFrame:
    """What is left with one component ablated, in every model."""
    rows = []
    for (name, task), evaluator in models.items():
        everything = components(evaluator.model)
        left = evaluator.replaced([[c] for c in everything]).logit_diff  # [component, n]
        shares = (left / evaluator.intact.logit_diff).mean(1).tolist()
        rows += [[name, task, str(c), x] for c, x in zip(everything, shares, strict=True)]
    return pd.DataFrame(rows, columns=["planted", "task", "component", "share"])


def _joint(name: str, evaluator: Evaluator) -> pd.DataFrame:
    """What is left with two parts of a model ablated (of a pair of one part: it alone)."""
    parts = sorted(PLANTED[name].circuit)
    pairs = [[a, b] for a in parts for b in parts]
    left = evaluator.replaced(pairs).logit_diff.mean(1) / evaluator.intact.logit_diff.mean()
    table = pd.DataFrame([list(map(str, pair)) for pair in pairs], columns=["first", "second"])
    return table.assign(share=left.numpy(), planted=name)


def _searches(
    found: Mapping[tuple[str, str, str], Discovery],
    truth: Mapping[tuple[str, str], list[frozenset[Component]]],
) -> pd.DataFrame:
    """What the searches found, and whether it is right."""
    rows = []
    for (name, task, search), result in found.items():
        row = {"planted": name, "task": task, "search": search, "score": result.score}
        row |= {"components": listed(result.components), "size": len(result.components)}
        row |= {"trials": result.trials, "right": result.components in truth[name, task]}
        rows.append(row)
    return pd.DataFrame(rows)


def _orders(
    first: Mapping[str, Evaluator],
    truth: Mapping[tuple[str, str], list[frozenset[Component]]],
    at: Setting,
) -> pd.DataFrame:
    """Two-sided sweeps of each model of the first task, in random orders."""
    task, rows = at["tasks"][0], []
    for name, evaluator in first.items():
        for draw in range(at["n_random"]):
            orders = partial(shuffled_orders, derive_generator(at["seed"], "sweep order", draw))
            circuit = sweep(evaluator, at["threshold"], two_sided=True, orders=orders).components
            row = {"planted": name, "task": task, "order": draw, "components": listed(circuit)}
            rows.append(row | {"right": circuit in truth[name, task]})
    return pd.DataFrame(rows)


def _check(alone: pd.DataFrame, accuracy: float) -> None:
    """Models are never wrong, distractors change nothing, and a path is broken by any gap."""
    assert accuracy == 1, f"a planted model answers {accuracy:.0%} of its prompts"
    for name, known in PLANTED.items():
        shares = alone[alone["planted"] == name].set_index("component")["share"]
        idle = [str(c) for c, kind in known.kinds.items() if kind == "idle"]
        assert (shares[idle] - 1).abs().max() < 1e-3, f"a distractor of {name} changes the answer"
        if name == "path":
            assert shares[list(map(str, known.circuit))].abs().max() < 1e-3, "a path has no detour"


def _check_searches(
    truth: Mapping[tuple[str, str], list[frozenset[Component]]],
    found: Mapping[tuple[str, str, str], Discovery],
) -> None:
    """Searches with the published threshold end as it is known of them."""
    for (name, task), answers in truth.items():
        known = PLANTED[name]
        assert set(answers) == set(known.smallest), f"{name} of {task}"
        assert found[name, task, "published sweep"].components == known.swept, f"{name} of {task}"
        assert found[name, task, "ranked"].components in known.smallest, f"{name} of {task}"

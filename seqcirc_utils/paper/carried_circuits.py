"""Which claims on circuits carry over: what they keep, need and share, and serve beyond tasks."""

from collections.abc import Callable, Sequence

import numpy as np

from seqcirc_utils.analyses.overlap import Overlap, layer_overlap, overlap
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError
from seqcirc_utils.paper.effects import (
    CAUSAL,
    FUNCTIONAL,
    Effect,
    carries,
)
from seqcirc_utils.paper.estimates import Estimate, resampled
from seqcirc_utils.paper.evidence import CIRCUITS, TASKS, Evidence

COUNTED = Estimate.counted


def _needed_by_all(e: Evidence) -> list[str]:
    """The heads that all circuits share, those with the largest least cost first."""
    costs = {head: min(e.cost(t, head).value for t in TASKS) for head in e.shared()}
    return sorted(costs, key=costs.__getitem__, reverse=True)


@carries(
    "C1",
    FUNCTIONAL,
    "A small part of the model does most of each task: the published sweep's circuit keeps at "
    "least {least:g}% of the logit difference on unseen prompts, with at most {most:g}% of the "
    "heads.",
    null="nothing kept: 0%; everything: 100%",
    least=70,
    most=25,
)
def _c1(e: Evidence, least: float, most: float) -> list[Effect]:
    layers, width = e.shape()
    found = []
    for task in TASKS:
        circuit = e.circuit(task, published=True)
        bounds = (100 * circuit.faithfulness[k] for k in ("mean", "low", "high"))
        kept = Estimate.of(bounds, e.n_prompts(task))
        share = 100 * len(circuit.heads) / (layers * width)
        found += [
            Effect(f"{task}, % kept", kept, least),
            Effect(f"{task}, % of heads", COUNTED(share), most, least=False),
        ]
    return found


def _beyond_chance(found: Overlap, least: float) -> Effect:
    """Shared heads beyond chance; the interval is the range of what chance gives."""
    shared = len(found.shared)
    low, high = found.range
    more = Estimate(shared - found.expected, shared - high, shared - low)
    return Effect("shared heads beyond chance", more, least)


@carries(
    "C2",
    FUNCTIONAL,
    "The published sweep's circuits share at least {least:g} more heads than random circuits with "
    "as many heads in each layer do.",
    null="random circuits with as many heads in each layer (exact law)",
    least=1,
)
def _c2(e: Evidence, least: float) -> list[Effect]:
    heads = [e.heads(t, published=True) for t in TASKS]
    return [_beyond_chance(layer_overlap(heads, *e.shape()), least)]


@carries(
    "C3",
    CAUSAL,
    "Four of the shared heads carry each circuit: removing any one of them costs every circuit at "
    "least {least:g} points.",
    null="the circuit with the head",
    least=10,
)
def _c3(e: Evidence, least: float) -> list[Effect]:
    best = _needed_by_all(e)[:4]
    if len(best) < 4:
        return [Effect("shared heads", COUNTED(len(best)), 4)]
    return [
        Effect(f"{head} in {t}, points", e.cost(t, head), least) for head in best for t in TASKS
    ]


@carries(
    "C4",
    CAUSAL,
    "Some head serves numbers only: it costs the digits and the number-words circuit at least "
    "{least:g} points each when removed, and is not in the months circuit.",
    null="the circuit with the head",
    least=10,
)
def _c4(e: Evidence, least: float) -> list[Effect]:
    both = (e.heads("digits") & e.heads("number_words")) - e.heads("months")
    if not both:
        return [Effect("heads of both number circuits that months lacks", COUNTED(0), 1)]
    tasks = TASKS[:2]
    best = max(map(str, sorted(both)), key=lambda head: min(e.cost(t, head).value for t in tasks))
    return [Effect(f"{best} in {t}, points", e.cost(t, best), least) for t in tasks]


@carries(
    "C5",
    CAUSAL,
    "Ablating the average head of the whole model costs at most {most:g} points (gains count as "
    "0), while at least {least:g}% of the four shared heads that circuits need most are among the "
    "ten heads that cost most.",
    null="the whole model",
    most=5,
    least=50,
)
def _c5(e: Evidence, most: float, least: float) -> list[Effect]:
    best = _needed_by_all(e)[:4]
    found = []
    for task in TASKS:
        names, values = e.ablations(task)
        heads = np.array([not name.startswith("mlp") for name in names])
        of_heads, mine = values[heads], np.isin(np.array(names)[heads], best)

        def mean_drop(means: np.ndarray) -> np.ndarray:
            return -means.clip(max=0).mean(0)

        def among_worst(means: np.ndarray, mine: np.ndarray = mine) -> np.ndarray:
            worst = means.argsort(0)[:10]
            return 100 * mine[worst].sum(0) / max(1, len(best))

        found += [
            Effect(f"{task}, mean drop", resampled(mean_drop, of_heads), most, least=False),
            Effect(f"{task}, % among the worst ten", resampled(among_worst, of_heads), least),
        ]
    return found


@carries(
    "C6",
    CAUSAL,
    "Two MLPs stand out in every task, the first and one of the upper half: ablating either costs "
    "at least {least:g} points more than ablating any third one.",
    null="the third-worst MLP",
    least=5,
)
def _c6(e: Evidence, least: float) -> list[Effect]:
    names, _ = e.ablations(TASKS[0])
    mlps = [i for i, name in enumerate(names) if name.startswith("mlp")]
    if len(mlps) < 3:
        raise UserError(f"the model has {len(mlps)} of the three MLPs that this compares")
    by_task = {t: e.ablations(t)[1][mlps] for t in TASKS}  # [mlp, n] each
    upper = range((len(mlps) + 1) // 2, len(mlps))
    late = max(upper, key=lambda i: -max(v[i].mean() for v in by_task.values()))

    def margin(means: np.ndarray) -> np.ndarray:
        third = -np.delete(means, [0, late], axis=0).min(0)
        return -means[[0, late]].max(0) - third

    return [
        Effect(f"mlp0 and mlp{late} in {t}, points", resampled(margin, v), least)
        for t, v in by_task.items()
    ]


@carries(
    "C7",
    FUNCTIONAL,
    "The digits and the number-words circuit do at least {least:g} points more of months than the "
    "months circuit does of their tasks.",
    null="no difference between the two directions",
    least=10,
)
def _c7(e: Evidence, least: float) -> list[Effect]:
    return [_more(e, (task, "months"), ("months", task), least) for task in TASKS[:2]]


@carries(
    "C8",
    FUNCTIONAL,
    "The number-words circuit does at least {least:g} points more of digits than the digits "
    "circuit does of number words.",
    null="no difference between the two directions",
    least=10,
)
def _c8(e: Evidence, least: float) -> list[Effect]:
    return [_more(e, ("number_words", "digits"), ("digits", "number_words"), least)]


def _more(e: Evidence, one: tuple[str, str], other: tuple[str, str], least: float) -> Effect:
    """How much more one circuit does of a task than another does of another."""
    first, second = (e.does(f"{circuit} circuit", task) for circuit, task in (one, other))
    label = f"{one[0]} on {one[1]} less {other[0]} on {other[1]}"
    return Effect(label, first.minus(second), least)


@carries(
    "C9",
    FUNCTIONAL,
    "The circuit of an unrelated task, found for it in the same way, keeps at most {most:g}% of "
    "each task.",
    null="nothing kept: 0%; each task's own circuit: about the threshold",
    most=40,
)
def _c9(e: Evidence, most: float) -> list[Effect]:
    why = e.data("06_cross_task.json", "left_out").get("ioi circuit")
    if why:
        raise UserError(f"no circuit of another task was found: {why}")
    return [Effect(t, e.does("ioi circuit", t), most, least=False) for t in TASKS]


@carries(
    "C20",
    CAUSAL,
    "Each task has a head of its own: in its circuit alone, found again in at least {again:g}% of "
    "the repeated searches, and worth at least {least:g} points there.",
    null="the circuit with the head",
    again=50,
    least=2,
)
def _c20(e: Evidence, again: float, least: float) -> list[Effect]:
    heads = {t: e.heads(t) for t in TASKS}
    found = []
    for task in TASKS:
        own = heads[task] - set.union(*(heads[t] for t in TASKS if t != task))
        table = e.table("04_circuit_discovery.csv", task).set_index("component")
        often = table.index[100 * table["inclusion"] >= again]
        names = sorted(set(map(str, own)) & set(often), key=Component.parse)
        if not names:
            found.append(Effect(f"own heads of {task}", COUNTED(0), 1))
            continue
        best = max(names, key=lambda head, task=task: e.cost(task, head).low)
        found.append(Effect(f"{best} in {task}, points", e.cost(task, best), least))
    return found


@carries(
    "C21",
    FUNCTIONAL,
    "In this model too the three circuits share at least {least:g} more heads than random sets of "
    "their sizes do, and in every task one of these has an early role and one a late one.",
    null="random sets of the circuits' sizes (exact law)",
    least=1,
)
def _c21(e: Evidence, least: float) -> list[Effect]:
    layers, width = e.shape()
    shared = _beyond_chance(overlap([e.heads(t) for t in TASKS], layers * width), least)
    parts = {
        "an early": {"member detection", "duplicate token"},
        "a late": {"transport to the end", "next member", "copy"},
    }
    held = [set(e.roles(t)["role"].reindex(e.shared())) for t in TASKS]
    counts = {part: sum(bool(h & roles) for h in held) for part, roles in parts.items()}
    return [
        shared,
        *(Effect(f"tasks with {p} role shared", COUNTED(n), 3) for p, n in counts.items()),
    ]


@carries(
    "C22",
    CAUSAL,
    "One head matters most in all three circuits: removing it costs at least {least:g} points more "
    "than removing any other head.",
    null="the next most needed head of the same circuit",
    least=2,
)
def _c22(e: Evidence, least: float) -> list[Effect]:
    shared = _needed_by_all(e)
    if not shared:
        return [Effect("shared heads", COUNTED(0), 1)]
    best, found = shared[0], []
    for task in TASKS:
        others = [str(c) for c in e.heads(task) if str(c) != best]
        if others:
            second = max(others, key=lambda head, task=task: e.cost(task, head).value)
            more = e.cost(task, best).beyond(e.cost(task, second))
            found.append(Effect(f"{best} over {second} in {task}", more, least))
    return found


def _harm(subject: str, sets: Sequence[str]) -> Callable[..., list[Effect]]:
    """What sets of heads cost of a subject beyond random sets, in points."""

    def effects(e: Evidence, least: float) -> list[Effect]:
        rows = e.planned(subject, sets)
        gaps = 100 * rows[["gap", "gap_low", "gap_high"]]
        found = zip(rows["set"], rows["n"], gaps.to_numpy(), strict=True)
        return [Effect(f"{s}, {subject}", Estimate.of(gap, n), least) for s, n, gap in found]

    return effects


_NULL = "random sets of as many heads in nearby layers, same questions"
_CLAIMS = (
    ("C23", "other steps", CIRCUITS, 20, "number sequences of other steps"),
    ("C24", "sums and differences", CIRCUITS, 20, "sums and differences"),
    ("C25", "months and dates in words", ("key heads",), 10, "word problems on months and dates"),
    ("C26", "Spanish", CIRCUITS, 20, "Spanish number words and months"),
)
for _claim, _subject, _sets, _least, _said in _CLAIMS:
    _which = "any circuit" if _sets is CIRCUITS else "the key heads"
    carries(
        _claim,
        CAUSAL,
        f"Mean-ablating the heads of {_which} costs at least {{least:g}} points more of {_said} "
        "(those that the model can do) than ablating random heads does.",
        null=_NULL,
        least=_least,
    )(_harm(_subject, _sets))

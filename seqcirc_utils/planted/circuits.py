"""Circuits that are put into models on purpose, and what is true of them."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.components import Component, components
from seqcirc_utils.models.loading import Model
from seqcirc_utils.planted.building import build
from seqcirc_utils.planted.parts import BEFORE, CARRY, DISTRACTOR, MARK, NEXT, Head, Mlp
from seqcirc_utils.statistics import positive_baseline

_ONE_IS_ENOUGH = ((0.6, 5.0), (0.8, -5.0))  # 1 from 0.8 on, however much arrives
_ALMOST = ((0.6, 5.0), (0.8, -4.95))  # a little more for more

_GOSSIP = Head(DISTRACTOR, "newest filler", "filler", "gossip")
_FIRST = Head(DISTRACTOR, "first member", "member", "unread")
_ALL = Head(DISTRACTOR, "everything", "member", "unread")
_ECHO = Mlp(DISTRACTOR, "echo")

_PLAIN: dict[str, Head | Mlp] = {
    **{"0.0": _GOSSIP, "0.1": _FIRST, "0.2": BEFORE, "mlp0": MARK},
    **{"1.0": _ALL, "1.1": _GOSSIP, "1.2": CARRY, "mlp1": NEXT},
    **{"2.0": _ALL, "2.1": _FIRST, "2.2": _GOSSIP, "mlp2": _ECHO},
}


def _writer(role: str, gain: float) -> Head:
    return Head(role, "itself", "next", "next", gain)


def _set(names: str) -> frozenset[Component]:
    return frozenset(Component.parse(name) for name in names.split())


_PATH = "0.2 mlp0 1.2 mlp1"


@dataclass(frozen=True)
class Planted:
    """One model whose circuit is known.

    Attributes:
        title: Name for headings.
        story: What was planted.
        changes: Parts that differ from the plain model, by component name.
        smallest: The smallest circuits whose logit difference is within 20% of the whole model's
            under mean ablation: to end in one of them is exact recovery. More than one where parts
            can stand in for each other.
        swept: What the published one-sided sweep (threshold 80%) ends in.
        verdict: What that is worth.
        stand_ins: Working parts outside the first of ``smallest`` that take over when one inside
            it is ablated (:func:`stand_ins` finds them).
        unseen: Working parts that mean ablation, position by position, cannot see.
    """

    title: str
    story: str
    smallest: tuple[frozenset[Component], ...]
    swept: frozenset[Component]
    verdict: str
    changes: Mapping[str, Head | Mlp] = field(default_factory=dict)
    stand_ins: frozenset[Component] = frozenset()
    unseen: frozenset[Component] = frozenset()

    @property
    def parts(self) -> dict[Component, Head | Mlp]:
        """Every component of the model and what it does."""
        return {Component.parse(name): part for name, part in {**_PLAIN, **self.changes}.items()}

    @property
    def roles(self) -> dict[Component, str]:
        """Role of every component, distractors included."""
        return {component: part.role for component, part in self.parts.items()}

    @property
    def kinds(self) -> dict[Component, str]:
        """``works``, ``against`` (the answer), ``unseen`` or ``idle``, for figures."""

        def kind(component: Component, part: Head | Mlp) -> str:
            if part.role == DISTRACTOR:
                return "idle"
            if component in self.unseen:
                return "unseen"
            return "against" if isinstance(part, Head) and part.gain < 0 else "works"

        return {component: kind(component, part) for component, part in self.parts.items()}

    @property
    def circuit(self) -> frozenset[Component]:
        """Every component that works on the answer, for or against it."""
        return frozenset(c for c, role in self.roles.items() if role != DISTRACTOR)

    def build(self, task: str = "months") -> Model:
        """Make the model for one task (on the CPU; well under a second).

        Raises:
            UserError: for an unknown task.
        """
        return build(self.title, self.parts, task)


PLANTED: dict[str, Planted] = {
    "path": Planted(
        title="One path",
        story="Four parts in a row, each needs the one before; all others are distractors.",
        smallest=(_set(_PATH),),
        swept=_set(_PATH),
        verdict="right",
    ),
    "pair": Planted(
        title="Redundant pair",
        story="Two heads carry the newest member to the end; each alone suffices (OR).",
        changes={"1.0": CARRY, "mlp1": Mlp("successor map", "next", _ONE_IS_ENOUGH)},
        smallest=(_set(_PATH), _set("0.2 mlp0 1.0 mlp1")),
        swept=_set(_PATH),
        verdict="one of two right answers; says nothing of the twin, which it met first",
        stand_ins=_set("1.0"),
    ),
    "detour": Planted(
        title="Short and long way",
        story="A strong head carries the newest member to the end; two weaker ones in a row do "
        "the same. Either way suffices.",
        changes={
            "1.2": Head("long way: first half", "one token back", "in order", "halfway"),
            "mlp1": _ECHO,
            "2.0": Head("short way", "newest member", "in order", "carried", 1.5),
            "2.1": Head("long way: second half", "newest stop", "halfway", "carried"),
            "mlp2": Mlp("successor map", "next", _ALMOST),
        },
        smallest=(_set("0.2 mlp0 2.0 mlp2"),),
        swept=_set("0.2 mlp0 1.2 2.1 mlp2"),
        verdict="too large: it met the short way first, so that only the long one was left",
        stand_ins=_set("1.2 2.1"),
    ),
    "uneven": Planted(
        title="Uneven writers",
        story="Three heads repeat the answer, one twice as loud as the others; the threshold "
        "leaves room for the loud one, or for the two soft ones.",
        changes={
            "2.0": _writer("repeats the answer, loud", 0.28),
            "2.1": _writer("repeats the answer, soft", 0.14),
            "2.2": _writer("repeats the answer, soft", 0.14),
        },
        smallest=(_set(f"{_PATH} 2.0"),),
        swept=_set(f"{_PATH} 2.1 2.2"),
        verdict="too large: it spent its room on the first head it met, the loud one",
    ),
    "negative": Planted(
        title="Negative head",
        story="One head repeats the answer, another writes against it.",
        changes={
            "2.0": _writer("repeats the answer", 0.5),
            "2.2": _writer("writes against the answer", -0.75),
        },
        smallest=(_set(f"{_PATH} 2.0 2.2"),),
        swept=_set(_PATH),
        verdict="too small: without the negative head there is so much to spare that a head the "
        "model needs goes too",
    ),
    "signpost": Planted(
        title="Signpost",
        story="The head that carries the newest member finds it by a mark, which an early head "
        "puts there: the same mark at the same place in every prompt.",
        changes={
            "0.1": Head("marks where members stand", "one token back", "is in", "marked"),
            "1.2": Head(CARRY.role, "newest mark", "in order", "carried"),
        },
        smallest=(_set(_PATH),),
        swept=_set(_PATH),
        verdict="right, but for the mark: mean ablation leaves in place what all prompts share",
        unseen=_set("0.1"),
    ),
}
"""The models, by short name."""


def smallest(
    evaluator: Evaluator, among: Iterable[Component], threshold: float = 0.8
) -> list[frozenset[Component]]:
    """The smallest circuits by trying every subset: the answer a search is held to.

    Args:
        evaluator: Prompts and replacement.
        among: Components to choose from (few: the number of subsets doubles with each).
        threshold: A circuit's mean logit difference must lie between this share of the whole
            model's and as much above it.
    """
    among = sorted(among)
    whole = positive_baseline(evaluator.intact.logit_diff, "the planted model")
    for size in range(len(among) + 1):
        sets = [frozenset(some) for some in itertools.combinations(among, size)]
        shares = evaluator.kept(sets).logit_diff.mean(1) / whole
        found = [s for s, x in zip(sets, shares, strict=True) if threshold <= x <= 2 - threshold]
        if found:
            return found
    return []


def stand_ins(
    evaluator: Evaluator, circuit: Iterable[Component], margin: float = 0.2
) -> set[Component]:
    """Components outside a circuit that take over when one inside it is ablated.

    Ablating both costs at least ``margin`` of the whole model's logit difference more than the two
    ablations alone cost together (where one of them helps, it costs nothing). A search for a
    sufficient circuit cannot see such parts.
    """
    circuit = set(circuit)
    whole = positive_baseline(evaluator.intact.logit_diff, "the planted model")
    everything = components(evaluator.model)
    outside = [c for c in everything if c not in circuit]
    pairs = list(itertools.product(sorted(circuit), outside))

    def cost(sets: list) -> list[float]:
        return (1 - evaluator.replaced(sets).logit_diff.mean(1) / whole).tolist()

    singles = cost([[c] for c in everything])
    alone = {c: max(0.0, x) for c, x in zip(everything, singles, strict=True)}
    return {
        b
        for (a, b), joint in zip(pairs, cost(pairs), strict=True)
        if joint > alone[a] + alone[b] + margin
    }

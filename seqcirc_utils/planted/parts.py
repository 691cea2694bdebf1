"""What heads and MLPs of a model built by hand do."""

from dataclasses import dataclass

from seqcirc_utils.components import Component

N_LAYERS, N_HEADS = 3, 3
DISTRACTOR = "distractor"
_POSITIONS = 64
_CODE = 8  # a filler is a random code of so many signs
_CLAUSE = 5  # tokens of a sentence: filler, verb, in, member, full stop
_SHARP = 30.0  # lead in attention score: all but exp(-30) of the attention goes to one place
_LOGIT = 10.0
_FLAGS = ("one", "place", "square", "is member", "is filler", "is in", "is stop", "marked")

# Where a head looks: terms (what the query reads, what the key reads) whose products are summed.
# "place" is the position over _POSITIONS, "square" its square: the nearer to the wished-for
# distance back, the larger 2 * key * (query - distance) - key².
_NEARER = _SHARP * _POSITIONS
_Term = tuple[dict[str, float], dict[str, float]]


def _back(distance: int) -> list[_Term]:
    sharp = _SHARP * _POSITIONS**2
    return [
        ({"place": 1.0, "one": -distance / _POSITIONS}, {"place": 2 * sharp}),
        ({"one": 1.0}, {"square": -sharp}),
    ]


_LOOKS: dict[str, list[_Term]] = {
    "one sentence back": _back(_CLAUSE),
    "one token back": _back(1),
    "itself": _back(0),
    "newest member": [({"one": 1.0}, {"is member": 2 * _NEARER, "place": _NEARER})],
    "newest mark": [({"one": 1.0}, {"marked": 2 * _NEARER, "place": _NEARER})],
    "newest stop": [({"one": 1.0}, {"is stop": 2 * _NEARER, "place": _NEARER})],
    "newest filler": [({"one": 1.0}, {"is filler": 2 * _NEARER, "place": _NEARER})],
    "first member": [({"one": 1.0}, {"is member": 2 * _NEARER, "place": -_NEARER})],
    "everything": [],
}


@dataclass(frozen=True)
class Head:
    """One head: where it looks, which feature it reads there, and what it writes.

    Attributes:
        role: What it is for; :data:`DISTRACTOR` when the answer does not depend on it.
        looks: Key of the positions it can look at.
        reads: Feature copied from there.
        writes: Feature written here.
        gain: Factor on the way.
    """

    role: str
    looks: str
    reads: str
    writes: str
    gain: float = 1.0


@dataclass(frozen=True)
class Mlp:
    """One MLP: ``does`` is ``mark`` (members that follow on), ``next`` (the successor map), or
    ``echo`` (fillers, for nobody).

    Attributes:
        role: What it is for; :data:`DISTRACTOR` when the answer does not depend on it.
        does: Which of the three.
        slopes: ``next`` only: the answer's strength is piecewise linear in what was carried, with
            these (threshold, change of slope) pairs.
    """

    role: str
    does: str
    slopes: tuple[tuple[float, float], ...] = ((0.75, 4.0),)


_ONE_IS_ENOUGH = ((0.6, 5.0), (0.8, -5.0))  # 1 from 0.8 on, however much arrives
_ALMOST = ((0.6, 5.0), (0.8, -4.95))  # a little more for more

BEFORE = Head("brings the member before", "one sentence back", "member", "before")
MARK = Mlp("marks a member that follows on", "mark")
CARRY = Head("carries the newest member to the end", "newest member", "in order", "carried")
NEXT = Mlp("successor map", "next")

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

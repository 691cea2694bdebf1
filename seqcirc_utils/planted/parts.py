"""What heads and MLPs of a model built by hand do."""

from dataclasses import dataclass

N_LAYERS, N_HEADS = 3, 3
DISTRACTOR = "distractor"
POSITIONS = 64
"""The longest prompt, in tokens."""
CODE = 8
"""A filler is a random code of this many signs."""
LOGIT = 10.0
"""The logit that a feature of size 1 gives its member."""
FLAGS = ("one", "place", "square", "is member", "is filler", "is in", "is stop", "marked")
"""Features of one coordinate each."""
_CLAUSE = 5  # tokens of a sentence: filler, verb, in, member, full stop
_SHARP = 30.0  # lead in attention score: all but exp(-30) of the attention goes to one place

_NEARER = _SHARP * POSITIONS
_Term = tuple[dict[str, float], dict[str, float]]


def _back(distance: int) -> list[_Term]:
    sharp = _SHARP * POSITIONS**2
    return [
        ({"place": 1.0, "one": -distance / POSITIONS}, {"place": 2 * sharp}),
        ({"one": 1.0}, {"square": -sharp}),
    ]


LOOKS: dict[str, list[_Term]] = {
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
"""Where a head looks: terms (what the query reads, what the key reads) whose products are summed.

``place`` is the position over :data:`POSITIONS`, ``square`` its square: the nearer to the
wished-for distance back, the larger 2 * key * (query - distance) - key².
"""


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


BEFORE = Head("brings the member before", "one sentence back", "member", "before")
MARK = Mlp("marks a member that follows on", "mark")
CARRY = Head("carries the newest member to the end", "newest member", "in order", "carried")
NEXT = Mlp("successor map", "next")

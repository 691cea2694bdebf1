"""Questions beyond the tasks, each asking for one ability."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from seqcirc_utils.errors import unknown
from seqcirc_utils.prompts.sequences import TASKS

POOL = 100
"""Questions of a probe at most."""


@dataclass(frozen=True)
class Question:
    """One question; the texts of the answers begin with the space that sets them apart.

    Attributes:
        context: What the model reads.
        answer: What should follow.
        wrong: What the answer is compared with: the last member, number or month shown.
        corrupted: A context of the same form from which the answer does not follow.
    """

    context: str
    answer: str
    wrong: str
    corrupted: str


@dataclass(frozen=True)
class Probe:
    """Questions that ask for one ability; they are drawn from in their order."""

    name: str
    group: str
    title: str
    questions: tuple[Question, ...] = field(repr=False)

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the answers that the probe asks for."""
        return 1 / len({question.answer for question in self.questions})


# What stands before a list of words: their few starts alone would make few questions.
_LEADS = ("List: ", "Order: ", "Row: ", "Series: ", "Next: ")
_SHOWN = 4  # members, as in the paper
# The orders of four members in which no neighbours are consecutive, upwards or downwards.
_JUMBLED = ((1, 3, 0, 2), (2, 0, 3, 1))
_NUMBERS = tuple(map(str, range(1000)))
_WORDS = TASKS["number_words"].members
_MONTHS = TASKS["months"].members


def _lists(
    members: Sequence[str],
    step: int = 1,
    *,
    cyclic: bool = False,
    leads: Sequence[str] = _LEADS,
    starts: Iterable[int] | None = None,
) -> Callable[[random.Random], list[Question]]:
    """Lists such as ``List: one, two, three, four,``."""

    def make(rng: random.Random) -> list[Question]:
        found = []
        for start in range(len(members)) if starts is None else starts:
            places = [start + i * step for i in range(_SHOWN + 1)]
            if not cyclic and not 0 <= min(places) <= max(places) < len(members):
                continue
            *shown, answer = (members[place % len(members)] for place in places)
            for lead in leads:
                jumbled = [shown[i] for i in rng.choice(_JUMBLED)]
                clean, corrupted = (f"{lead}{', '.join(part)}," for part in (shown, jumbled))
                found.append(Question(clean, f" {answer}", f" {shown[-1]}", corrupted))
        return found

    return make


def _numbers(step: int, first: int, last: int) -> Callable[[random.Random], list[Question]]:
    return _lists(_NUMBERS, step, leads=("",), starts=range(first, last + 1))


def _sums(sign: str, digits: int) -> Callable[[random.Random], list[Question]]:
    """Sums and differences after two worked ones, such as ``3 + 4 = 7, 5 + 1 = 6, 6 + 2 =``."""
    low, high = 10 ** (digits - 1), 10**digits - 1

    def draw(rng: random.Random, same: bool) -> tuple[str, int, int]:
        while True:
            a, b = rng.randint(low, high), rng.randint(low, high)
            answer = a + b if sign == "+" else a - b
            # Worked results have the operands' digits, so that contexts are of one length.
            fits = low <= answer <= high if same else answer > 0 and answer != b
            if fits:
                return f"{a} {sign} {b} =", answer, b

    def context(rng: random.Random) -> tuple[str, int, int]:
        worked = [" ".join(map(str, draw(rng, True)[:2])) + ", " for _ in range(2)]
        text, answer, b = draw(rng, False)
        return "".join(worked) + text, answer, b

    def make(rng: random.Random) -> list[Question]:
        found = []
        for _ in range(POOL):
            text, answer, b = context(rng)
            found.append(Question(text, f" {answer}", f" {b}", context(rng)[0]))
        return found

    return make


def _months_pass(after: Sequence[int]) -> Callable[[random.Random], list[Question]]:
    """Word problems such as ``If it is May now, then two months later it will be``."""

    def text(month: str, n: int) -> str:
        return f"If it is {month} now, then {_WORDS[n - 1]} month{'s' * (n > 1)} later it will be"

    def make(rng: random.Random) -> list[Question]:
        return [
            Question(
                text(month, n),
                f" {_MONTHS[(i + n) % 12]}",
                f" {month}",
                text(rng.choice([m for m in _MONTHS if m != month]), n),
            )
            for i, month in enumerate(_MONTHS)
            for n in after
        ]

    return make


def _days_pass(after: Sequence[int]) -> Callable[[random.Random], list[Question]]:
    """Word problems such as ``Today is May 6. In 1 day it will be May``."""

    def text(month: str, day: int, n: int) -> str:
        return f"Today is {month} {day}. In {n} day{'s' * (n > 1)} it will be {month}"

    def make(rng: random.Random) -> list[Question]:
        return [
            Question(
                text(month, day, n),
                f" {day + n}",
                f" {day}",
                text(month, rng.choice([d for d in range(1, 9) if d != day]), n),
            )
            for month in _MONTHS
            for n in after
            for day in range(1, 10 - n)
        ]

    return make


_PROBES: tuple[tuple[str, str, str, Callable[[random.Random], list[Question]]], ...] = (
    ("plus_1", "sequence", "numbers, +1", _numbers(1, 1, 40)),
    ("number_words", "sequence", "number words", _lists(_WORDS)),
    ("months", "sequence", "months", _lists(_MONTHS, cyclic=True)),
    ("days", "sequence", "days", _lists(TASKS["days"].members, cyclic=True)),
    ("letters", "sequence", "letters", _lists(TASKS["letters"].members)),
    ("plus_2", "interval", "numbers, +2", _numbers(2, 1, 40)),
    ("plus_3", "interval", "numbers, +3", _numbers(3, 1, 40)),
    ("plus_10", "interval", "numbers, +10", _numbers(10, 1, 55)),
    ("plus_100", "interval", "numbers, +100", _numbers(100, 1, 500)),
    ("minus_1", "descending", "numbers, -1", _numbers(-1, 5, 60)),
    ("minus_2", "descending", "numbers, -2", _numbers(-2, 9, 60)),
    ("number_words_down", "descending", "number words, -1", _lists(_WORDS, -1)),
    ("months_down", "descending", "months, -1", _lists(_MONTHS, -1, cyclic=True)),
    *(
        (name, "language", TASKS[name].title, _lists(TASKS[name].members, cyclic="months" in name))
        for name in (
            "spanish_number_words",
            "spanish_months",
            "french_number_words",
            "french_months",
        )
    ),
    ("sum_1", "arithmetic", "sums, 1 digit", _sums("+", 1)),
    ("sum_2", "arithmetic", "sums, 2 digits", _sums("+", 2)),
    ("difference_1", "arithmetic", "differences, 1 digit", _sums("-", 1)),
    ("difference_2", "arithmetic", "differences, 2 digits", _sums("-", 2)),
    ("month_after", "word problem", "one month later", _months_pass((1,))),
    ("months_passing", "word problem", "2 or 3 months later", _months_pass((2, 3))),
    ("date_after", "word problem", "one day later", _days_pass((1,))),
    ("dates_passing", "word problem", "2 or 3 days later", _days_pass((2, 3))),
)


def names() -> tuple[str, ...]:
    """All probes."""
    return tuple(name for name, *_ in _PROBES)


def probes(names: Sequence[str] = (), seed: int = 0) -> list[Probe]:
    """The named probes, or all, each with its questions in random order.

    Raises:
        UserError: for an unknown name.
    """
    made = {name: (group, title, make) for name, group, title, make in _PROBES}
    found = []
    for name in names or made:
        if name not in made:
            raise unknown("probe", name, made)
        group, title, make = made[name]
        rng = random.Random(f"{seed}:{name}")
        questions = list(dict.fromkeys(make(rng)))
        rng.shuffle(questions)
        found.append(Probe(name, group, title, tuple(questions[:POOL])))
    return found

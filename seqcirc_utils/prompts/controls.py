"""Control tasks, which ask nothing of a sequence: two prompt tasks and plain text.

What a circuit of sequence continuation does to these says how much of it serves any task at all.
The prompt tasks give :class:`~seqcirc_utils.prompts.prompts.PromptSets`, and so are scored like the
others: logit(answer) minus logit(wrong answer) at the end, means over corrupted prompts.

* ``ioi``: indirect object identification (Wang et al. 2022): ``When Kate and Paul went to the
  shop, Paul gave a book to`` is to be continued by Kate; the wrong answer is Paul. Corrupted:
  three different names.
* ``greater_than`` (Hanna et al. 2023): ``The war lasted from the year 1743 to the year 17`` is to
  be continued by more than 43. One possible and one impossible continuation are drawn for each
  prompt, so that the mean is over both sets of tokens (and accuracy, whether that one is on top,
  means little here). Where a tokenizer writes one digit at a time the continuation is the next
  digit, and digits that leave it open are not used. Corrupted: the first year ends in 01.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts, PromptSets
from seqcirc_utils.prompts.sequences import TEMPLATES
from seqcirc_utils.prompts.vocabulary import encode

TITLES = {"ioi": "Indirect object", "greater_than": "Greater-than"}
"""The prompt tasks, and what headings call them."""

_NAMES = TEMPLATES["born"].fillers
_PLACES = tuple("shop park office school station house garden hospital church market".split())
_GIFTS = tuple("book ball key letter ring drink map card hat coat watch pen".split())
_EVENTS = tuple(
    "war project study voyage conflict campaign siege dispute mission trial reign contract "
    "program expedition exhibition construction rebellion friendship marriage journey".split()
)
_CENTURIES = ("14", "15", "16", "17", "18")
MIN_WORDS = {"names": 12, "places": 3, "gifts": 3, "events": 3, "nouns": 4}
"""A task needs this many words of each kind that are one token, or its prompts are all alike."""


def misfit(model: Model, what: str, why: str) -> UserError:
    """The error for text that a model's tokenizer cannot hold."""
    return UserError(
        f"{what} does not fit the tokenizer of {model.facts.title}: {why}; skip it or choose "
        "another model."
    )


class Pair(NamedTuple):
    """A prompt, its corrupted counterpart, and the answers of both."""

    text: str
    corrupted: str
    answer: int
    wrong: int
    words: tuple[str, ...]
    marks: tuple[int, ...]  # characters whose tokens are the member positions


def single_words(model: Model, task: str, kind: str, words: Iterable[str]) -> list[str]:
    """The words that are one token after a space."""
    unk = model.tokenizer.unk_token_id
    found = [encode(model.tokenizer, f" {word}") for word in words]
    kept = [w for w, ids in zip(words, found, strict=True) if len(ids) == 1 and ids[0] != unk]
    if len(kept) < MIN_WORDS[kind]:
        why = f"{len(kept)} {kind} are single tokens, {MIN_WORDS[kind]} are needed"
        raise misfit(model, f"control task {task!r}", why)
    return kept


def _ioi(model: Model) -> Callable[[random.Random], Pair]:
    names = single_words(model, "ioi", "names", _NAMES)
    places = single_words(model, "ioi", "places", _PLACES)
    gifts = single_words(model, "ioi", "gifts", _GIFTS)

    def draw(rng: random.Random) -> Pair:
        giver, receiver, *others = rng.sample(names, 5)
        place, gift = rng.choice(places), rng.choice(gifts)

        def text(first: str, second: str, third: str) -> tuple[str, tuple[int, ...]]:
            start = f"When {first} and {second}"
            whole = f"{start} went to the {place}, {third} gave a {gift} to"
            return whole, (5, len(start) - 1, whole.index(f"{third} gave"))

        pair = [giver, receiver]
        rng.shuffle(pair)
        clean, marks = text(pair[0], pair[1], giver)
        answer, wrong = (encode(model.tokenizer, f" {name}")[0] for name in (receiver, giver))
        return Pair(clean, text(*others)[0], answer, wrong, (receiver, giver), marks)

    return draw


def _year_ends(model: Model, century: str) -> dict[str, int]:
    """For each ``00`` … ``99`` the token that follows ``the year <century>`` when it comes next."""
    start = encode(model.tokenizer, f" to the year {century}")
    found = {}
    for number in range(100):
        ids = encode(model.tokenizer, f" to the year {century}{number:02}")
        if ids[: len(start)] == start and len(ids) > len(start):
            found[f"{number:02}"] = ids[len(start)]
    unk = model.tokenizer.unk_token_id
    return {} if unk in found.values() else found


def _greater_than(model: Model) -> Callable[[random.Random], Pair]:
    events = single_words(model, "greater_than", "events", _EVENTS)
    years = []  # (century, ending, right next tokens, wrong ones, length of the year in tokens)
    for century in _CENTURIES:
        ends = _year_ends(model, century)
        reference = len(encode(model.tokenizer, f" year {century}01"))
        for ending in ends:
            right = {t for e, t in ends.items() if e > ending}
            wrong = {t for e, t in ends.items() if e < ending}
            either = right & wrong | {ends[ending]}
            right, wrong = sorted(right - either), sorted(wrong - either)
            length = len(encode(model.tokenizer, f" year {century}{ending}"))
            if right and wrong and length == reference:
                years.append((century, ending, right, wrong, length))
    usual = Counter(length for *_, length in years).most_common(1)
    years = [year for year in years if year[-1] == usual[0][0]]
    if len(years) < 20:
        why = f"it writes {len(years)} years so that an end can follow their first digits"
        raise misfit(model, "control task 'greater_than'", why)

    def draw(rng: random.Random) -> Pair:
        century, ending, right, wrong, _ = rng.choice(years)
        event = rng.choice(events)

        def text(end: str) -> str:
            return f"The {event} lasted from the year {century}{end} to the year {century}"

        mark = text(ending).index(century) + len(century)
        answer, lower = rng.choice(right), rng.choice(wrong)
        return Pair(text(ending), text("01"), answer, lower, (ending,), (mark,))

    return draw


_DRAW = {"ioi": _ioi, "greater_than": _greater_than}


def _write(model: Model, task: str, texts: Sequence[str], pairs: Sequence[Pair]) -> Prompts:
    prefix = model.in_front
    rows, marked = [], []
    for text, pair in zip(texts, pairs, strict=True):
        found = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in found["offset_mapping"]]
        rows.append(prefix + found["input_ids"])
        at = [next(i for i, end in enumerate(ends) if end > mark) for mark in pair.marks]
        marked.append([len(prefix) + i for i in at])
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1:
        raise misfit(model, f"control task {task!r}", f"its prompts have {lengths} tokens")
    return Prompts(
        task=task,
        texts=list(texts),
        tokens=torch.tensor(rows),
        answer_ids=torch.tensor([pair.answer for pair in pairs]),
        last_ids=torch.tensor([pair.wrong for pair in pairs]),
        member_positions=torch.tensor(marked),
        in_positions=torch.full((len(rows), 1), lengths[0] - 1),
        members=[pair.words for pair in pairs],
        answers=[model.tokenizer.decode([pair.answer]).strip() for pair in pairs],
        starts=[-(text == pair.corrupted) for text, pair in zip(texts, pairs, strict=True)],
        templates=[task] * len(rows),
        fillers=[()] * len(rows),
    )


def _fresh(draw: Callable[[random.Random], Pair], rng: random.Random, used: set[str]) -> Pair:
    for _ in range(1000):
        pair = draw(rng)
        if pair.text not in used:
            used.add(pair.text)
            return pair
    raise UserError("the control task has too few different prompts: ask for fewer.")


def prompt_sets(
    model: Model,
    task: str,
    *,
    n_prompts: int,
    n_means: int,
    n_discovery: int | None = None,
    seed: int = 0,
) -> PromptSets:
    """Draw the disjoint prompt sets of a control task, as ``drawing.prompt_sets`` does.

    Args:
        model: Gives the tokenizer and the token put in front.
        task: ``ioi`` or ``greater_than``.
        n_prompts: Evaluation prompts.
        n_means: Corrupted prompts behind the mean activations.
        n_discovery: Discovery prompts; as many as evaluation prompts when ``None``.
        seed: The same seed draws the same prompts.

    Raises:
        UserError: an unknown task, counts below 1, a tokenizer that cannot hold the task.
    """
    if task not in _DRAW:
        raise unknown("control task", task, _DRAW)
    wanted = {"evaluation": n_prompts, "means": n_means}
    wanted["discovery"] = n_prompts if n_discovery is None else n_discovery
    return drawn_sets(model, task, _DRAW[task](model), wanted, seed)


def drawn_sets(
    model: Model,
    task: str,
    draw: Callable[[random.Random], Pair],
    wanted: Mapping[str, int],
    seed: int,
) -> PromptSets:
    """Disjoint prompt sets of any task whose prompts are drawn in pairs.

    Args:
        model: Gives the tokenizer and the token put in front.
        task: What it is called.
        draw: Draws a prompt and its partner.
        wanted: How many for ``evaluation``, ``means`` and ``discovery``.
        seed: The same seed draws the same prompts.

    Raises:
        UserError: counts below 1, too few different prompts, a tokenizer that cannot hold them.
    """
    if min(wanted.values()) < 1:
        raise UserError(f"control task {task!r}: every count must be at least 1, got {wanted}.")
    used: set[str] = set()
    drawn: dict[str, list[Pair]] = {}
    for purpose, n in wanted.items():
        rng = random.Random(f"{seed}:{task}:{purpose}")
        drawn[purpose] = [_fresh(draw, rng, used) for _ in range(n)]

    def write(purpose: str, corrupted: bool = False) -> Prompts:
        pairs = drawn[purpose]
        return _write(model, task, [p.corrupted if corrupted else p.text for p in pairs], pairs)

    return PromptSets(
        evaluation=write("evaluation"),
        corrupted=write("evaluation", corrupted=True),
        discovery=write("discovery"),
        means=write("means", corrupted=True),
        drawn=wanted["evaluation"] + wanted["discovery"],
    )

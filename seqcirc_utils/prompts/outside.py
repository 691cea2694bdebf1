"""Tasks beside the sequences that say what a circuit of sequence continuation is specific to.

* ``ioi`` and ``greater_than``: see :mod:`~seqcirc_utils.prompts.controls`.
* ``agreement``: ``The keys near the cabinet`` is to be continued by "are", not "is"; the noun
  between agrees or not, as it happens. Corrupted: the subject in the other number.
* ``repeat``: the sentences and words of a sequence task, but the same member each time (``Anna
  born in May. Paul born in May. …``), and the answer is that member, not another. So the template
  and the looking back are there, and no sequence. Corrupted: random members.
* ``shuffled``: the sentences and words again, in a fixed arbitrary order, which the model cannot
  know; no two neighbours are successors. Scored as the sequence is: the next of that order against
  the last one shown. What a search finds here it finds without anything to find.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle

import torch

from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts import controls
from seqcirc_utils.prompts.controls import Pair, drawn_sets, single_words
from seqcirc_utils.prompts.drawing import Draft, Writer
from seqcirc_utils.prompts.prompts import Prompts, PromptSets
from seqcirc_utils.prompts.vocabulary import encode

TITLES = {**controls.TITLES, "agreement": "Agreement", "repeat": "Repeat"}
"""The tasks that circuits are compared with, and what headings call them."""

OUTSIDE = (*controls.TITLES, "agreement")
"""Those that share neither words nor sentences with the sequences."""

VARIANTS = ("repeat", "shuffled")
"""Those that are made from a sequence task."""

_NOUNS = tuple(
    "key book dog car tree door girl boy house teacher king road river song tool machine "
    "student doctor window table".split()
)


def _agreement(model: Model) -> Callable[[random.Random], Pair]:
    both = single_words(model, "agreement", "nouns", [*_NOUNS, *(f"{noun}s" for noun in _NOUNS)])
    nouns = [noun for noun in _NOUNS if {noun, f"{noun}s"} <= set(both)]
    verbs = [encode(model.tokenizer, f" {verb}") for verb in ("is", "are")]
    unk = model.tokenizer.unk_token_id
    if len(nouns) < controls.MIN_WORDS["nouns"] or any(v == [unk] or len(v) > 1 for v in verbs):
        why = f"{len(nouns)} nouns are single tokens in both numbers, or is and are are not"
        raise controls.misfit(model, "task 'agreement'", why)
    numbers = cycle((0, 1))

    def draw(rng: random.Random) -> Pair:
        subject, other = rng.sample(nouns, 2)
        number, between = next(numbers), rng.randrange(2)

        def text(plural: int) -> str:
            return f"The {subject}{'s' * plural} near the {other}{'s' * between}"

        answer, wrong = verbs[number][0], verbs[1 - number][0]
        marks = (len("The "),)
        return Pair(text(number), text(1 - number), answer, wrong, (subject,), marks)

    return draw


def _arbitrary(allowed: Sequence[int], seed: int, task: str) -> list[int]:
    """Members in a fixed order in which none follows its predecessor."""
    rng = random.Random(f"{seed}:{task}:order")
    order = list(allowed)
    while any(b - a == 1 for a, b in zip(order, order[1:], strict=False)):
        rng.shuffle(order)
    return order


def variant_sets(
    model: Model,
    task: str,
    variant: str,
    *,
    n_prompts: int,
    n_means: int,
    n_discovery: int,
    seed: int = 0,
    templates: Sequence[str] = ("born",),
) -> PromptSets:
    """Disjoint prompt sets of ``repeat`` or ``shuffled`` made from a sequence task.

    Args:
        model: Gives the tokenizer and the token put in front.
        task: The sequence task whose words and sentences they are.
        variant: A name of :data:`VARIANTS`.
        n_prompts: Evaluation prompts.
        n_means: Corrupted prompts behind the mean activations.
        n_discovery: Discovery prompts.
        seed: The same seed draws the same prompts, and the same arbitrary order.
        templates: Sentence templates, taking turns.

    Raises:
        UserError: unknown names, counts below 1, a tokenizer that splits the members.
    """
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    wanted = {"evaluation": n_prompts, "means": n_means, "discovery": n_discovery}
    if min(wanted.values()) < 1:
        raise UserError(f"{variant}: every count must be at least 1, got {wanted}.")
    writer = Writer(model, task, templates, n_members=4)
    ids = writer.vocabulary.ids
    allowed = [i for i, token in enumerate(ids) if token is not None]
    order = _arbitrary(allowed, seed, task)
    used: set = set()
    drafts: dict[str, list[tuple[Draft, int, int]]] = {}
    for purpose, n in wanted.items():
        rng = writer.source(seed, f"{variant}:{purpose}")
        turns = writer.turns(rng)
        drafts[purpose] = []
        for i in range(n):
            draft = writer.draw(rng, turns, i, used)
            if variant == "repeat":
                answer, wrong = rng.sample(allowed, 2)
                shown = (answer,) * 4
            else:
                at = rng.randrange(len(order) - 4)
                *shown, answer = order[at : at + 5]
                wrong = shown[-1]
            drafts[purpose].append((replace(draft, shown=tuple(shown)), answer, wrong))

    def write(purpose: str, corrupted: bool = False) -> Prompts:
        rng = writer.source(seed, f"{variant}:{purpose}:corrupted")
        made = [writer.corrupt(rng, d) if corrupted else d for d, _, _ in drafts[purpose]]
        answers = [answer for _, answer, _ in drafts[purpose]]
        return replace(
            writer.write(made),
            task=variant,
            answer_ids=torch.tensor([ids[i] for i in answers]),
            last_ids=torch.tensor([ids[wrong] for _, _, wrong in drafts[purpose]]),
            answers=[writer.vocabulary.members[i] for i in answers],
        )

    return PromptSets(
        evaluation=write("evaluation"),
        corrupted=write("evaluation", corrupted=True),
        discovery=write("discovery"),
        means=write("means", corrupted=True),
        drawn=n_prompts + n_discovery,
    )


def prompt_sets(
    model: Model,
    task: str,
    *,
    of: str,
    n_prompts: int,
    n_means: int,
    n_discovery: int,
    seed: int = 0,
    templates: Sequence[str] = ("born",),
) -> PromptSets:
    """Disjoint prompt sets of a task of :data:`TITLES`; variants are made from the task ``of``.

    Raises:
        UserError: as :func:`variant_sets` and ``controls.prompt_sets`` do.
    """
    counts = {"n_prompts": n_prompts, "n_means": n_means, "n_discovery": n_discovery}
    if task in VARIANTS:
        return variant_sets(model, of, task, seed=seed, templates=templates, **counts)
    if task == "agreement":
        wanted = {"evaluation": n_prompts, "means": n_means, "discovery": n_discovery}
        return drawn_sets(model, task, _agreement(model), wanted, seed)
    return controls.prompt_sets(model, task, seed=seed, **counts)

"""Drawing clean and corrupted prompts, and writing them as text and tokens."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts, PromptSets
from seqcirc_utils.prompts.sequences import MIN_FILLERS, TEMPLATES
from seqcirc_utils.prompts.vocabulary import encode, vocabulary


@dataclass(frozen=True)
class Draft:
    """What is needed to write one prompt."""

    template: str
    fillers: tuple[str, ...]
    start: int
    shown: tuple[int, ...]
    answer: int


class Writer:
    """Turns drafts of one task into :class:`Prompts` for one model."""

    def __init__(self, model: Model, task: str, templates: Sequence[str], n_members: int) -> None:
        if not templates:
            raise UserError(f"no template asked for: allowed are {', '.join(TEMPLATES)}.")
        for name in templates:
            if name not in TEMPLATES:
                raise unknown("template", name, TEMPLATES)
        self.model, self.task, self.n_members = model, task, n_members
        self.vocabulary = vocabulary(task, model.tokenizer)
        self.starts = self.vocabulary.starts(n_members)
        if not self.starts:
            split = [
                m
                for m, i in zip(self.vocabulary.members, self.vocabulary.ids, strict=True)
                if i is None
            ]
            raise UserError(
                f"task {task!r} does not fit the tokenizer of {model.facts.title}: no "
                f"{n_members + 1} consecutive members are single tokens (split: "
                f"{', '.join(split) or 'none'}); choose another task, fewer members or another "
                "model."
            )
        self.fillers = {name: self._single_token_fillers(name) for name in templates}

    def source(self, seed: int, purpose: str) -> random.Random:
        """What draws one set of prompts: other names and starts for each sentence and length."""
        written = f"{'+'.join(self.fillers)}:{self.n_members}"
        return random.Random(f"{seed}:{self.task}:{written}:{purpose}")

    def turns(self, rng: random.Random) -> list[int]:
        """The starts in the order that they take turns in.

        By chance, so that the first prompts of a set are no particular part of the sequence.
        """
        return rng.sample(self.starts, len(self.starts))

    def _single_token_fillers(self, name: str) -> tuple[str, ...]:
        tokenizer = self.model.tokenizer
        kept = tuple(
            filler
            for filler in TEMPLATES[name].fillers
            if len(encode(tokenizer, filler)) == len(encode(tokenizer, f" {filler}")) == 1
        )
        if len(kept) < MIN_FILLERS:
            raise UserError(
                f"template {name!r} has only {len(kept)} single-token fillers under the tokenizer "
                f"of {self.model.facts.title} ({MIN_FILLERS} are needed): choose another template."
            )
        return kept

    def draw(self, rng: random.Random, turns: Sequence[int], index: int, used: set) -> Draft:
        """Draw a clean prompt; fillers are never used twice.

        Starts take ``turns``, and so do templates; of all pairs of both none comes again before
        every other has come.
        """
        names = list(self.fillers)
        # Two cycles that have come round together would repeat their pairs: one goes on by one.
        rounds = index // math.lcm(len(turns), len(names))
        template = names[(index + rounds) % len(names)]
        start = turns[index % len(turns)]
        for _ in range(1000):
            fillers = tuple(rng.sample(self.fillers[template], self.n_members + 1))
            if (template, fillers) not in used:
                break
        else:
            raise UserError(
                f"template {template!r} has too few fillers for so many different prompts: "
                "ask for fewer prompts or more templates."
            )
        used.add((template, fillers))
        shown = tuple(range(start, start + self.n_members))
        return Draft(template, fillers, start, shown, start + self.n_members)

    def corrupt(self, rng: random.Random, draft: Draft) -> Draft:
        """Replace the members by random ones of the same kind, in an order that continues nowhere.

        No neighbours are consecutive, and the last two do not increase; so the prompt suggests no
        next member. (The paper excludes consecutive last members only.)
        """
        allowed = [i for i, token in enumerate(self.vocabulary.ids) if token is not None]
        if self.n_members == 1:
            others = [i for i in allowed if i != draft.shown[0]]
            return replace(draft, start=-1, shown=(rng.choice(others),))
        while True:
            shown = tuple(rng.choice(allowed) for _ in range(self.n_members))
            steps = [b - a for a, b in zip(shown, shown[1:], strict=False)]
            if 1 not in steps and steps[-1] <= 0 and shown != draft.shown:
                return replace(draft, start=-1, shown=shown)

    def _check_covered(self, text: str, spans: Sequence[tuple[int, int]]) -> None:
        """Hold the tokens' spans to all of the text but its spaces.

        Raises:
            UserError: for a tokenizer that drops a part, as one read with another's rules does.
        """
        covered = {i for start, end in spans for i in range(start, end)}
        lost = "".join(c for i, c in enumerate(text) if i not in covered and not c.isspace())
        if lost:
            kind = type(self.model.tokenizer).__name__
            raise UserError(
                f"the tokenizer of {self.model.facts.title} ({kind}) "
                f"drops {lost[:20]!r} from {text!r}: it is not the tokenizer that its files were "
                "saved from. Save it in its model's own class, or use another model."
            )

    def write(self, drafts: Sequence[Draft]) -> Prompts:
        """Write drafts as text and tokens, and find the position of every part."""
        vocab, tokenizer = self.vocabulary, self.model.tokenizer
        prefix = self.model.in_front
        rows, texts, member_at, in_at = [], [], [], []
        for draft in drafts:
            verb = TEMPLATES[draft.template].verb
            text, members, ins = "", [], []
            for filler, member in zip(draft.fillers, draft.shown, strict=False):
                text += f"{filler} {verb} in"
                ins.append(len(text) - 1)
                text += f" {vocab.members[member]}"
                members.append(len(text) - 1)
                text += ". "
            text += f"{draft.fillers[-1]} {verb} in"
            ins.append(len(text) - 1)
            text += " " if vocab.space_apart else ""
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = encoded["offset_mapping"]
            self._check_covered(text, spans)

            def token_at(character: int, spans: list = spans) -> int:
                return len(prefix) + next(i for i, (_, e) in enumerate(spans) if e > character)

            rows.append(prefix + encoded["input_ids"])
            texts.append(text)
            member_at.append([token_at(c) for c in members])
            in_at.append([token_at(c) for c in ins])
        lengths = sorted({len(row) for row in rows})
        if len(lengths) != 1:
            raise UserError(
                f"the prompts of {self.task!r} have {lengths} tokens under the tokenizer of "
                f"{self.model.facts.title}: they must be of one length, since nothing is padded."
            )
        tokens, member_positions = torch.tensor(rows), torch.tensor(member_at)
        expected = torch.tensor([[vocab.ids[m] for m in draft.shown] for draft in drafts])
        if not torch.equal(tokens.gather(1, member_positions), expected):
            raise UserError(
                f"the tokenizer of {self.model.facts.title} writes the members of {self.task!r} "
                "differently inside a sentence: this task cannot be used with this model."
            )
        return Prompts(
            task=self.task,
            texts=texts,
            tokens=tokens,
            answer_ids=torch.tensor([vocab.ids[draft.answer] for draft in drafts]),
            last_ids=torch.tensor([vocab.ids[draft.answer - 1] for draft in drafts]),
            member_positions=member_positions,
            in_positions=torch.tensor(in_at),
            members=[tuple(vocab.members[m] for m in draft.shown) for draft in drafts],
            answers=[vocab.members[draft.answer] for draft in drafts],
            starts=[draft.start for draft in drafts],
            templates=[draft.template for draft in drafts],
            fillers=[draft.fillers for draft in drafts],
        )


def tally(templates: Sequence[str], *sets: Prompts) -> str:
    """Say which templates prompts were written in, as in ``born (3), lost (1), done (0)``.

    Args:
        templates: Those asked for; one alone is only named.
        sets: The prompts, counted together.
    """
    if len(templates) == 1:
        return templates[0]
    used = [name for prompts in sets for name in prompts.templates]
    return ", ".join(f"{name} ({used.count(name)})" for name in templates)


def clean_prompts(
    model: Model,
    task: str,
    n: int,
    *,
    seed: int = 0,
    templates: Sequence[str] = ("born",),
    n_members: int = 4,
) -> Prompts:
    """``n`` clean prompts of any number of members; starts and templates take turns."""
    _positive("n", n)
    writer = Writer(model, task, templates, n_members)
    rng = writer.source(seed, "clean")
    turns, used = writer.turns(rng), set()
    return writer.write([writer.draw(rng, turns, i, used) for i in range(n)])


def prompt_sets(
    model: Model,
    task: str,
    *,
    n_prompts: int,
    n_means: int,
    n_discovery: int | None = None,
    seed: int = 0,
    templates: Sequence[str] = ("born",),
    keep: Callable[[Prompts], torch.Tensor] | None = None,
) -> PromptSets:
    """Draw the disjoint prompt sets of a run.

    Args:
        model: Gives the tokenizer and the token put in front.
        task: Name in :data:`TASKS`.
        n_prompts: Evaluation prompts.
        n_means: Corrupted prompts behind the mean activations.
        n_discovery: Discovery prompts; as many as evaluation prompts when ``None``.
        seed: The same seed draws the same prompts; enlarging one set leaves the others alone.
        templates: Names in :data:`TEMPLATES`, taking turns; a filter may keep more of one.
        keep: Optional filter ``prompts -> bool [n]`` (the paper's: ``metrics.paper_filter``).

    Raises:
        UserError: unknown names, counts below 1, a tokenizer that splits the task's members, or a
            filter that keeps hardly anything.
    """
    n_discovery = n_prompts if n_discovery is None else n_discovery
    for name, n in (("n_prompts", n_prompts), ("n_means", n_means), ("n_discovery", n_discovery)):
        _positive(name, n)
    writer = Writer(model, task, templates, n_members=4)
    used: set = set()
    drawn = 0

    def fill(purpose: str, wanted: int) -> list[Draft]:
        nonlocal drawn
        rng = writer.source(seed, purpose)
        turns = writer.turns(rng)
        kept: list[Draft] = []
        tried = 0
        while len(kept) < wanted:
            if tried >= 20 * wanted:
                raise UserError(
                    f"the filter kept {len(kept)} of {tried} {task} prompts, {wanted} are needed: "
                    f"{model.facts.title} cannot do the task well enough; leave paper_filter off."
                )
            batch = [writer.draw(rng, turns, tried + i, used) for i in range(wanted)]
            tried += len(batch)
            mask = [True] * len(batch) if keep is None else keep(writer.write(batch)).tolist()
            kept += [draft for draft, good in zip(batch, mask, strict=True) if good]
        drawn += tried
        return kept[:wanted]

    def corrupt(drafts: list[Draft], purpose: str) -> Prompts:
        rng = writer.source(seed, f"{purpose}:corrupted")
        return writer.write([writer.corrupt(rng, draft) for draft in drafts])

    evaluation, discovery = fill("evaluation", n_prompts), fill("discovery", n_discovery)
    rng = writer.source(seed, "means")
    turns = writer.turns(rng)
    means = [writer.draw(rng, turns, i, used) for i in range(n_means)]
    return PromptSets(
        evaluation=writer.write(evaluation),
        corrupted=corrupt(evaluation, "evaluation"),
        discovery=writer.write(discovery),
        means=corrupt(means, "means"),
        drawn=drawn,
    )


def _positive(name: str, n: int) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {n!r}.")

"""Beyond the paper's tasks: probes of related abilities, and what losing a circuit's heads costs.

A probe is a set of questions with one answer each (paper, section on Llama-2; claims C23 to C26):
other intervals, falling sequences, other languages, arithmetic, word problems. An answer may have
several tokens. It is scored by teacher forcing, in one pass: correct when every token of it is the
top token and what follows would not carry the word or number on (``1`` is not an answer of 12).
Questions of one token length make a batch; nothing is padded.

Only heads are ablated here, at all positions, as published for Llama-2; every MLP stays.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control
from transformer_lens.tools.analysis import logit_readout
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.ablation import Component, record
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.metrics import rate
from seqcirc_utils.models import Model
from seqcirc_utils.tasks import TASKS

KINDS = ("mean", "zero")
EFFECT_COLUMNS = (
    *("probe", "group", "kind", "set", "n_heads", "n", "accuracy_before", "accuracy_after"),
    *("low", "high", "retained", "random_mean", "log_prob_change", "random_log_prob_change"),
    *("n_draws", "p"),
)
MIN_QUESTIONS = 4
"""Fewer questions than this say nothing about an ability."""
MIN_ACCURACY = 0.25
"""With less than this there is too little to lose."""
POOL = 100
"""Questions of a probe at most."""
MAX_LENGTHS = 2
"""Batches of a probe: its questions come from the most frequent token lengths."""
NEAR = 2
"""A matched random head lies within so many layers of the head that it stands for."""


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


Encoded = tuple[tuple[int, ...], int]
"""Token ids of a question and its answer, and how many of them are the answer's."""


@dataclass(frozen=True)
class Batch:
    """Questions of one token length, their answers written out.

    Attributes:
        tokens: Context and answer ``[n, pos]``, the prepended token included.
        n_answer: How many of the tokens are the answer's.
        rows: Which questions these are, in the order of a probe's scores.
    """

    tokens: torch.Tensor
    n_answer: int
    rows: tuple[int, ...]


def _batches(encoded: Sequence[Encoded]) -> list[Batch]:
    lengths = defaultdict(list)
    for row, (ids, n_answer) in enumerate(encoded):
        lengths[len(ids), n_answer].append(row)
    return [
        Batch(torch.tensor([encoded[row][0] for row in rows]), n_answer, tuple(rows))
        for (_, n_answer), rows in lengths.items()
    ]


@dataclass(frozen=True)
class Fitted:
    """A probe's questions as a model's tokenizer writes them.

    Attributes:
        questions: The questions.
        right: They and their answers as tokens.
        wrong: They and their wrong answers as tokens.
        references: Corrupted questions ``[m, pos]`` by length and length of the answer.
    """

    probe: Probe
    questions: tuple[Question, ...]
    right: tuple[Encoded, ...]
    wrong: tuple[Encoded, ...]
    references: Mapping[tuple[int, int], torch.Tensor]

    def __len__(self) -> int:
        return len(self.questions)

    def only(self, rows: Sequence[int]) -> "Fitted":
        """The questions of the given rows."""
        kept = {
            name: tuple(getattr(self, name)[row] for row in rows)
            for name in ("questions", "right", "wrong")
        }
        return replace(self, **kept)


def _encode(model: Model, context: str, answer: str) -> Encoded | None:
    """A question and its answer as tokens; None where the tokenizer cannot hold them.

    That is so where its vocabulary lacks something, or the answer melts into the context.
    """

    def ids(text: str) -> list[int]:
        return model.tokenizer(text, add_special_tokens=False)["input_ids"]

    head, whole = ids(context), ids(context + answer)
    if whole[: len(head)] != head or len(whole) == len(head):
        return None
    if model.tokenizer.unk_token_id in whole:
        return None
    prefix = [] if model.prepend_id is None else [model.prepend_id]
    return (*prefix, *whole), len(whole) - len(head)


def fit(model: Model, probe: Probe, n: int, n_references: int = 16) -> Fitted:
    """Write the first ``n`` questions of a probe that the tokenizer can hold.

    Questions come from the :data:`MAX_LENGTHS` most frequent token lengths, so that batches are
    few and each has corrupted questions of its own length to take means over.

    Raises:
        UserError: when fewer than :data:`MIN_QUESTIONS` fit, with what the tokenizer cannot hold.
    """
    fits, lost = [], []
    for question in probe.questions:
        texts = (question.context, question.answer), (question.context, question.wrong)
        encoded = [_encode(model, *pair) for pair in (*texts, (question.corrupted, texts[0][1]))]
        if None in encoded:
            lost.append(question.answer.strip())
        else:
            fits.append((question, *encoded))
    references = defaultdict(list)
    for *_, (ids, n_answer) in fits:
        references[len(ids), n_answer].append(ids)
    lengths = [(len(ids), n_answer) for _, (ids, n_answer), *_ in fits]
    counts = Counter(length for length in lengths if len(references[length]) >= 2)
    common = dict(counts.most_common(MAX_LENGTHS))
    chosen = [entry for entry, length in zip(fits, lengths, strict=True) if length in common][:n]
    if len(chosen) < min(n, MIN_QUESTIONS):
        words = ", ".join(dict.fromkeys(lost))
        raise UserError(
            f"the tokenizer of {model.facts.title} can hold {len(chosen)} questions of "
            f"{probe.name!r}, {MIN_QUESTIONS} are needed"
            + (f" (it cannot write: {words})." if words else ".")
        )
    questions, right, wrong, _ = zip(*chosen, strict=True)
    means = {key: torch.tensor(references[key][:n_references]) for key in common}
    return Fitted(probe, questions, right, wrong, means)


@dataclass(frozen=True)
class Answers:
    """How the answers fare; the last axis is the question.

    Attributes:
        correct: Whether the whole answer is what the model would write, and no more.
        log_prob: Its log probability, summed over tokens, in nats.
    """

    correct: torch.Tensor
    log_prob: torch.Tensor


class Bench:
    """A fitted probe, ready to be asked again and again with heads ablated.

    Args:
        model: The model, weights unprocessed.
        fitted: The probe.
        kind: ``zero``, or ``mean``: per position, over corrupted questions of the same length.
        max_tokens: Tokens (sets times questions times positions) of one pass: bounds the memory.

    Raises:
        UserError: for another kind, or logits that are not finite.
    """

    def __init__(
        self, model: Model, fitted: Fitted, kind: str = "mean", *, max_tokens: int = 4096
    ) -> None:
        if kind not in KINDS:
            raise unknown("ablation", kind, KINDS)
        self.model, self.fitted, self.kind, self.max_tokens = model, fitted, kind, max_tokens
        self._known: dict[frozenset[Component], tuple[torch.Tensor, torch.Tensor]] = {}
        self.batches = _batches(fitted.right)
        self._runs, self._replacements = [], []
        for batch in self.batches:
            self._runs.append(record(model, batch))
            if kind == "mean":
                reference = fitted.references[batch.tokens.shape[1], batch.n_answer]
                z = record(model, replace(batch, tokens=reference)).activations.z
                self._replacements.append(z.mean(1))
            else:
                self._replacements.append(torch.zeros_like(self._runs[-1].activations.z[:, 0]))
        self.intact = self.ablated([()])

    def ablated(self, sets: Sequence[Iterable[Component]]) -> Answers:
        """Scores ``[set, n]`` with each set's heads ablated at all positions.

        Raises:
            UserError: for a component that is not a head of the model.
        """
        keys = [frozenset(heads) for heads in sets]
        for component in frozenset().union(*keys):
            layer, head = component
            if head is None or not (layer < self.model.n_layers and head < self.model.n_heads):
                raise UserError(f"{component} is not a head of {self.model.facts.title}.")
        # Sets that start in one layer share passes: what lies below is not computed again.
        new = sorted(dict.fromkeys(k for k in keys if k not in self._known), key=self._start)
        step = max(1, self.max_tokens // max(b.tokens.numel() for b in self.batches))
        for i in range(0, len(new), step):
            part = new[i : i + step]
            scores = _joined(
                [self._replay(j, part) for j in range(len(self.batches))], self.batches
            )
            self._known |= zip(part, zip(scores.correct, scores.log_prob, strict=True), strict=True)
        correct, log_prob = zip(*(self._known[key] for key in keys), strict=True)
        return Answers(torch.stack(correct), torch.stack(log_prob))

    def _start(self, heads: frozenset[Component]) -> int:
        return min((layer for layer, _ in heads), default=self.model.n_layers)

    @torch.no_grad()
    def _replay(
        self, place: int, sets: Sequence[frozenset[Component]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores ``[set, row]`` of one batch, from the first block that a set ablates."""
        batch, run = self.batches[place], self._runs[place]
        replacement = self._replacements[place]
        bridge, n, count = self.model.bridge, len(batch.rows), len(sets)
        start = min(map(self._start, sets))
        gone = torch.zeros(count, self.model.n_layers, self.model.n_heads, dtype=torch.bool)
        for i, heads in enumerate(sets):
            for layer, head in heads:
                gone[i, layer, head] = True
        gone = gone.to(replacement.device)

        def swap(layer: int) -> Callable:
            mask, new = gone[:, layer, None, None, :, None], replacement[layer]
            return lambda z, hook: torch.where(
                mask, new, z.reshape(count, n, *z.shape[1:])
            ).reshape(z.shape)

        stream = run.residual[start].repeat(count, 1, 1)
        layers = range(start, self.model.n_layers)
        hooks = [(f"blocks.{layer}.attn.hook_z", swap(layer)) for layer in layers]
        with bridge.hooks(fwd_hooks=hooks):
            for layer in layers:
                out = bridge.blocks[layer](stream, **run.block_arguments[layer])
                stream = out[0] if isinstance(out, tuple) else out
        return _read(self.model, batch, stream)


def _read(model: Model, batch: Batch, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score final residuals ``[count * n, pos, d_model]``: correct, log probability ``[count, n]``.

    Raises:
        UserError: for logits that are not finite.
    """
    rows, (n, n_answer) = 256, (len(batch.rows), batch.n_answer)  # rows bound the logits' memory
    # One position more than the answer has tokens: does the model go on with the word?
    final = stream[:, -n_answer - 1 :]
    truth = batch.tokens[:, -n_answer:].repeat(len(stream) // n, 1)
    correct, log_prob = [], []
    for part, true in zip(final.split(rows), truth.split(rows), strict=True):
        logits = logit_readout(model.bridge, part.flatten(0, 1), chunk_size=rows).values.float()
        if not torch.isfinite(logits).all():
            raise UserError("the model's logits hold NaN or infinity: try dtype float32.")
        logits = logits.reshape(*part.shape[:2], -1)
        top = logits.argmax(-1).cpu()
        own = logits[:, :-1].gather(-1, true.to(logits.device)[..., None])[..., 0]
        log_prob.append((own - logits[:, :-1].logsumexp(-1)).sum(-1).cpu())
        more = [_goes_on(model, *pair) for pair in zip(true[:, -1], top[:, -1], strict=True)]
        correct.append((top[:, :-1] == true).all(-1) & ~torch.tensor(more))
    return torch.cat(correct).reshape(-1, n), torch.cat(log_prob).reshape(-1, n)


def _goes_on(model: Model, last: torch.Tensor, following: torch.Tensor) -> bool:
    """Whether a token that follows the answer's last one would carry the word or number on."""
    decode = model.tokenizer.decode
    return decode([int(last), int(following)])[len(decode([int(last)])) :][:1].isalnum()


def ability(model: Model, probe: Probe, n: int) -> tuple[dict[str, Any], Fitted | None]:
    """Can the model do it? Its accuracy on ``n`` questions, and whether to go on.

    The rule: the exact 95% interval of the accuracy lies above chance, the accuracy is at least
    :data:`MIN_ACCURACY` (added after a first look), and the answer is on average more probable than
    the wrong one.

    Returns:
        A row of the table of probes (``logit_diff``: log probability of the answer minus that of
        the wrong answer, in nats, which for single tokens is the logit difference; ``reason`` says
        why a probe is not used), and the questions that the model gets right, or ``None``.
    """
    row = {"probe": probe.name, "group": probe.group, "title": probe.title}
    row |= {"example": probe.questions[0].context + " …", "n": 0, "chance": probe.chance}
    row |= dict.fromkeys(("accuracy", "low", "high", "logit_diff"), float("nan"))
    try:
        fitted = fit(model, probe, n)
    except UserError as error:
        return row | {"used": False, "reason": str(error)}, None
    right, wrong = _plain(model, fitted.right), _plain(model, fitted.wrong)
    share = rate(right.correct[0])
    difference = (right.log_prob - wrong.log_prob).mean().item()
    row |= {"example": f"{fitted.questions[0].context} … {fitted.questions[0].answer.strip()}"}
    row |= {"n": len(fitted), "accuracy": share.mean, "low": share.low, "high": share.high}
    row |= {"logit_diff": difference}
    reason = ""
    if not share.low > probe.chance:
        reason = f"accuracy {share} is not above chance ({probe.chance:.2f})"
    elif share.mean < MIN_ACCURACY:
        reason = f"accuracy {share} leaves too little to lose"
    elif not difference > 0:
        reason = f"the wrong answer is more probable (by {-difference:.2f} nats)"
    able = None if reason else fitted.only(right.correct[0].nonzero().flatten().tolist())
    return row | {"used": not reason, "reason": reason}, able


@torch.no_grad()
def _plain(model: Model, encoded: Sequence[Encoded]) -> Answers:
    """Scores ``[1, n]`` of the intact model."""
    batches, parts, seen = _batches(encoded), [], []
    hook = (f"blocks.{model.n_layers - 1}.hook_out", lambda value, hook: seen.append(value))
    for batch in batches:
        tokens = batch.tokens.to(model.device)
        model.bridge.run_with_hooks(tokens, return_type=None, fwd_hooks=[hook])
        parts.append(_read(model, batch, seen.pop()))
    return _joined(parts, batches)


def _joined(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], batches: Sequence[Batch]
) -> Answers:
    """Scores of batches ``[count, rows]`` in the order of the questions ``[count, n]``."""
    order = torch.tensor([row for batch in batches for row in batch.rows]).argsort()
    return Answers(*(torch.cat(values, 1)[:, order] for values in zip(*parts, strict=True)))


def matched(
    model: Model, heads: Iterable[Component], draws: int, seed: int = 0
) -> list[frozenset[Component]]:
    """Different random sets of as many heads, each head within :data:`NEAR` layers of its pattern.

    The set itself is never drawn, but a draw may share heads with it.

    Returns:
        ``draws`` sets, or fewer where there are not so many different ones (single heads).
    """
    own = frozenset(heads)
    everything = [Component(i, j) for i in range(model.n_layers) for j in range(model.n_heads)]
    found: dict[frozenset[Component], None] = {}
    for draw in range(10 * draws):
        if len(found) == draws:
            break
        rng = derive_generator(seed, "matched heads", *map(str, sorted(own)), draw)
        chosen: set[Component] = set()
        patterns = sorted(own)
        for i in torch.randperm(len(patterns), generator=rng).tolist():
            left = [c for c in everything if c not in chosen]
            distance = [abs(c.layer - patterns[i].layer) for c in left]
            limit = max(NEAR, min(distance))  # a crowded place: as near as can be
            near = [c for c, d in zip(left, distance, strict=True) if d <= limit]
            chosen.add(near[int(torch.randint(len(near), (1,), generator=rng))])
        if chosen != own:
            found[frozenset(chosen)] = None
    return list(found)


def effects(
    bench: Bench,
    sets: Mapping[str, Iterable[Component]],
    *,
    n_draws: int,
    n_hits: int = 3,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What ablating each set of heads does to a probe, beside matched random sets.

    ``p`` is the share of random sets after whose ablation accuracy is as low or lower,
    (hits + 1) / (draws + 1). Drawing stops early at ``n_hits`` hits (Besag and Clifford 1991): by
    then the set is not remarkable, and the p-value stays valid.

    Args:
        bench: The probe.
        sets: Heads by name; an empty set gets no row.
        n_draws: Random sets for each; 0 for none (``p`` and what is random are then NaN).
        n_hits: When to stop drawing.
        seed: Draws the random sets; they are the same for every probe.

    Returns:
        Rows of :data:`EFFECT_COLUMNS`. ``low``, ``high``: exact 95% interval of
        ``accuracy_after``; ``retained``: of the questions right before, the share right after; log
        probabilities of the answers in nats, mean over questions.
    """
    before = Answers(bench.intact.correct[0], bench.intact.log_prob[0])
    rows = []
    for name, heads in sets.items():
        heads = frozenset(heads)
        if not heads:
            continue
        own = bench.ablated([heads])
        after, log_prob = rate(own.correct[0]), own.log_prob.mean().item()
        draws = matched(bench.model, heads, n_draws, seed)
        null, null_log_prob, hits = np.zeros(0), np.zeros(0), 0
        while len(null) < len(draws) and hits < n_hits:
            scores = bench.ablated(draws[len(null) : len(null) + 5])
            null = np.append(null, scores.correct.double().mean(1))
            null_log_prob = np.append(null_log_prob, scores.log_prob.mean(1))
            hits = int((null <= after.mean + 1e-9).sum())
        rows.append(
            {
                "probe": bench.fitted.probe.name,
                "group": bench.fitted.probe.group,
                "kind": bench.kind,
                "set": name,
                "n_heads": len(heads),
                "n": len(bench.fitted),
                "accuracy_before": before.correct.double().mean().item(),
                "accuracy_after": after.mean,
                "low": after.low,
                "high": after.high,
                "retained": _share(own.correct[0][before.correct]),
                "random_mean": _share(null),
                "log_prob_change": log_prob - before.log_prob.mean().item(),
                "random_log_prob_change": _share(null_log_prob) - before.log_prob.mean().item(),
                "n_draws": len(null),
                "p": (hits + 1) / (len(null) + 1) if n_draws else float("nan"),
            }
        )
    return rows


def _share(values: Any) -> float:
    values = np.asarray(values, float)
    return float(values.mean()) if len(values) else float("nan")


def corrected(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of :func:`effects` as one table, with ``q``: p corrected for all of its tests.

    Benjamini and Hochberg: of the rows with q below .05, one in twenty is expected to be chance.
    """
    table = pd.DataFrame(rows, columns=EFFECT_COLUMNS)
    tested = table["p"].notna()
    table["q"] = float("nan")
    if tested.any():
        table.loc[tested, "q"] = false_discovery_control(table.loc[tested, "p"].astype(float))
    return table

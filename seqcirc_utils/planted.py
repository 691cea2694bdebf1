"""Transformers built by hand whose sequence-continuation circuit is known (ground truth).

Each :class:`Planted` model is a GPT-2 of three layers with three heads each, all weights set here.
It continues one task's sequence without error, as follows. At every member a head looks one
sentence back and brings the member before; an MLP marks members that follow on from it; a head
carries the newest marked member to the end; an MLP writes the next one. Variants change one thing
each. Corrupted prompts never show two consecutive members, so nothing is ever marked there: what
mean ablation puts in place of a working part is exactly nothing.

Two tricks keep the arithmetic exact. Every feature is written twice, once negated, so the residual
stream has mean 0; and LayerNorm's epsilon is so large (with a weight to match) that it divides by
a constant. So the normalisation does nothing, and a feature of size 1 stays 1.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from seqcirc_utils import tasks
from seqcirc_utils.ablation import Component, Evaluator, components
from seqcirc_utils.metrics import positive_baseline
from seqcirc_utils.models import Facts, Model

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
        return _build(self, task)


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
    among = sorted(among, key=str)
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
    pairs = list(itertools.product(sorted(circuit, key=str), outside))

    def cost(sets: list) -> list[float]:
        return (1 - evaluator.replaced(sets).logit_diff.mean(1) / whole).tolist()

    singles = cost([[c] for c in everything])
    alone = {c: max(0.0, x) for c, x in zip(everything, singles, strict=True)}
    return {
        b
        for (a, b), joint in zip(pairs, cost(pairs), strict=True)
        if joint > alone[a] + alone[b] + margin
    }


class _Stream:
    """Which coordinates of the residual stream hold which feature (first half; second: negated)."""

    def __init__(self, n_members: int) -> None:
        wide = ("member", "before", "in order", "halfway", "carried", "next", "unread")
        sizes = dict.fromkeys(wide, n_members)
        sizes |= dict.fromkeys(("filler", "gossip", "echo"), _CODE) | dict.fromkeys(_FLAGS, 1)
        self.at: dict[str, slice] = {}
        self.half = 0
        for name, size in sizes.items():
            self.at[name] = slice(self.half, self.half + size)
            self.half += size
        self.half += -self.half % N_HEADS  # heads split the stream evenly
        self.d_model = 2 * self.half
        self.d_head = self.d_model // N_HEADS

    def reader(self, features: Mapping[str, float]) -> torch.Tensor:
        """A vector ``[d_model]`` that reads a weighted sum of one-coordinate features."""
        vector = torch.zeros(self.d_model)
        for name, weight in features.items():
            vector[self.at[name]] = weight
        return vector

    def written(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows ``[n, half]`` as rows of the whole stream ``[n, d_model]``, mean 0."""
        return torch.cat([rows, -rows], 1)


def _head_weights(stream: _Stream, part: Head) -> tuple[torch.Tensor, ...]:
    """Weights q, k, v ``[d_model, d_head]`` and o ``[d_head, d_model]`` of one head."""
    q, k, v = (torch.zeros(stream.d_model, stream.d_head) for _ in range(3))
    for i, (query, key) in enumerate(_LOOKS[part.looks]):
        q[:, i] = stream.reader(query) * stream.d_head**0.5  # attention divides by it
        k[:, i] = stream.reader(key)
    source, target = stream.at[part.reads], stream.at[part.writes]
    n = source.stop - source.start
    v[source, :n] = torch.eye(n)
    o = torch.zeros(stream.d_head, stream.half)
    o[:n, target] = part.gain * torch.eye(n)
    return q, k, v, stream.written(o)


def _mlp_weights(stream: _Stream, part: Mlp, n: int) -> tuple[torch.Tensor, ...]:
    """Weights in ``[d_model, neuron]``, bias ``[neuron]`` and weights out ``[neuron, d_model]``."""
    at, rows = stream.at, []  # one neuron each: reads, bias, feature written, its entry, weight
    for i in range(1, n):
        if part.does == "mark":  # this one and, one sentence back, the one before: logical and
            reads = {at["member"].start + i: 4.0, at["before"].start + i - 1: 4.0}
            rows.append((reads, -7.0, at["in order"].start + i, 1.0))
        elif part.does == "next":
            for threshold, slope in part.slopes:
                reads = {at["carried"].start + i - 1: 1.0}
                rows.append((reads, -threshold, at["next"].start + i, slope))
    if part.does == "echo":
        for i in range(_CODE):
            rows.append(({at["gossip"].start + i: 1.0}, 0.0, at["echo"].start + i, 1.0))
    w_in, bias = torch.zeros(stream.d_model, len(rows)), torch.zeros(len(rows))
    w_out = torch.zeros(len(rows), stream.half)
    for neuron, (reads, threshold, target, weight) in enumerate(rows):
        for coordinate, factor in reads.items():
            w_in[coordinate, neuron] = factor
        bias[neuron], w_out[neuron, target] = threshold, weight
    return w_in, bias, stream.written(w_out)


@torch.no_grad()
def _build(model: Planted, task: str) -> Model:
    tokenizer = word_tokenizer()
    vocabulary = tasks.vocabulary(task, tokenizer)
    n = len(vocabulary.members)
    stream = _Stream(n)
    steady = 1e8  # LayerNorm's epsilon: its root times its inverse is 1
    neurons = 2 * n
    config = GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=len(tokenizer),
        n_positions=_POSITIONS,
        n_embd=stream.d_model,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_inner=neurons,
        activation_function="relu",
        layer_norm_epsilon=steady,
        tie_word_embeddings=False,
        attn_implementation="eager",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    hf = GPT2LMHeadModel(config)
    for name, weight in hf.named_parameters():
        weight.fill_(steady**0.5 if ".ln_" in name and name.endswith("weight") else 0.0)
    tokens, positions, unembed = _embeddings(stream, tokenizer, vocabulary)
    hf.transformer.wte.weight.copy_(tokens)
    hf.transformer.wpe.weight.copy_(positions)
    hf.lm_head.weight.copy_(unembed)
    for component, part in model.parts.items():
        block = hf.transformer.h[component.layer]
        if isinstance(part, Head):
            assert component.head is not None
            own = slice(component.head * stream.d_head, (component.head + 1) * stream.d_head)
            q, k, v, o = _head_weights(stream, part)
            joint = block.attn.c_attn.weight.split(stream.d_model, 1)
            for whole, weight in zip(joint, (q, k, v), strict=True):
                whole[:, own] = weight
            block.attn.c_proj.weight[own] = o
        else:
            w_in, bias, w_out = _mlp_weights(stream, part, n)
            block.mlp.c_fc.weight[:, : len(bias)] = w_in
            block.mlp.c_fc.bias[: len(bias)] = bias
            block.mlp.c_proj.weight[: len(bias)] = w_out
    plain = word_tokenizer()
    plain.bos_token = None  # the bridge would look for the tokenizer's files, to put BOS in front
    bridge = TransformerBridge.boot_transformers(
        "planted", hf_model=hf.eval(), tokenizer=plain, device="cpu"
    )
    bridge.eval()
    bridge.requires_grad_(False)
    facts = Facts(
        name=model.title,
        title=f"planted: {model.title}",
        source="built by hand",
        sha256="",
        revision="",
        licence="MIT",
        dtype="float32",
        device="cpu",
        n_layers=N_LAYERS,
        n_heads=N_HEADS,
        n_key_value_heads=N_HEADS,
        d_model=stream.d_model,
        d_vocab=len(tokenizer),
        n_parameters=sum(weight.numel() for weight in hf.parameters()),
        prepend=tokenizer.bos_token,
    )
    return Model(bridge, tokenizer, facts, tokenizer.bos_token_id)


def _embeddings(
    stream: _Stream, tokenizer: PreTrainedTokenizerFast, vocabulary: tasks.Vocabulary
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token and position embeddings and the unembedding, a row of the stream each."""
    at, ids = stream.at, tokenizer.get_vocab()
    tokens = torch.zeros(len(tokenizer), stream.half)
    unembed = torch.zeros(len(tokenizer), stream.d_model)
    for i, token in enumerate(vocabulary.ids):
        if token is None:
            continue
        tokens[token, at["member"].start + i] = 1
        tokens[token, at["is member"]] = 1
        unembed[token, at["next"].start + i] = _LOGIT
    tokens[ids[" in"], at["is in"]] = 1
    tokens[ids["."], at["is stop"]] = 1
    rng = derive_generator(0, "filler codes")
    for filler in sorted({f for template in tasks.TEMPLATES.values() for f in template.fillers}):
        code = torch.randint(2, (_CODE,), generator=rng) * 2.0 - 1
        for token in (ids[filler], ids[f" {filler}"]):
            tokens[token, at["filler"]] = code
            tokens[token, at["is filler"]] = 1
            unembed[token, at["gossip"]] = code / _CODE  # fillers seen come to mind, a little
    place = torch.arange(_POSITIONS) / _POSITIONS
    positions = torch.zeros(_POSITIONS, stream.half)
    positions[:, at["one"]] = 1
    positions[:, at["place"]] = place[:, None]
    positions[:, at["square"]] = place[:, None] ** 2
    return stream.written(tokens), stream.written(positions), unembed


def word_tokenizer(
    space_apart: bool = False, without: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: all that the tasks write, with and without a leading space.

    Args:
        space_apart: The space before digits is a token of its own, as in many tokenizers.
        without: Words that are split after their first letter.
    """
    words = ["in"]
    for template in tasks.TEMPLATES.values():
        words += [template.verb, *template.fillers]
    for task in tasks.TASKS.values():
        words += task.members
    known = ["<unk>", "<bos>", "<eos>", " ", "."]
    known += [form for word in dict.fromkeys(words) for form in (word, f" {word}")]
    ids = {word: i for i, word in enumerate(known)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    halves = "".join(rf" ?{word[0]}(?={word[1:]}\b)|" for word in without)
    number = r"\d+" if space_apart else r" ?\d+"
    rule = Regex(rf"{halves} ?[^\W\d_]+|{number}|\.| ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(rule, "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)

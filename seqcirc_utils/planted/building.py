"""Models built by hand from a planted circuit."""

from collections.abc import Mapping

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformer_lens.utilities.statistics import derive_generator
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from seqcirc_utils.components import Component
from seqcirc_utils.models.loading import Facts, Model, bridged
from seqcirc_utils.planted.parts import (
    CODE,
    FLAGS,
    LOGIT,
    LOOKS,
    N_HEADS,
    N_LAYERS,
    POSITIONS,
    Head,
    Mlp,
)
from seqcirc_utils.prompts import sequences
from seqcirc_utils.prompts import vocabulary as vocabulary_module


class _Stream:
    """Which coordinates of the residual stream hold which feature (first half; second: negated)."""

    def __init__(self, n_members: int) -> None:
        wide = ("member", "before", "in order", "halfway", "carried", "next", "unread")
        sizes = dict.fromkeys(wide, n_members)
        sizes |= dict.fromkeys(("filler", "gossip", "echo"), CODE) | dict.fromkeys(FLAGS, 1)
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
    for i, (query, key) in enumerate(LOOKS[part.looks]):
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
        for i in range(CODE):
            rows.append(({at["gossip"].start + i: 1.0}, 0.0, at["echo"].start + i, 1.0))
    w_in, bias = torch.zeros(stream.d_model, len(rows)), torch.zeros(len(rows))
    w_out = torch.zeros(len(rows), stream.half)
    for neuron, (reads, threshold, target, weight) in enumerate(rows):
        for coordinate, factor in reads.items():
            w_in[coordinate, neuron] = factor
        bias[neuron], w_out[neuron, target] = threshold, weight
    return w_in, bias, stream.written(w_out)


def _blank(stream: _Stream, tokenizer: PreTrainedTokenizerFast, neurons: int) -> GPT2LMHeadModel:
    """A model in which no part writes anything, and whose norms pass everything through."""
    steady = 1e8  # LayerNorm's epsilon: its root times its inverse is 1
    config = GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
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
    hf = GPT2LMHeadModel(config).eval()
    for name, weight in hf.named_parameters():
        weight.fill_(steady**0.5 if ".ln_" in name and name.endswith("weight") else 0.0)
    return hf


@torch.no_grad()
def build(title: str, parts: Mapping[Component, Head | Mlp], task: str) -> Model:
    """Make a model for one task, on the CPU.

    Args:
        title: Its name.
        parts: What each of its components does.
        task: What it continues.

    Raises:
        UserError: for an unknown task.
    """
    tokenizer = word_tokenizer()
    vocabulary = vocabulary_module.vocabulary(task, tokenizer)
    n = len(vocabulary.members)
    stream = _Stream(n)
    hf = _blank(stream, tokenizer, neurons=2 * n)
    tokens, positions, unembed = _embeddings(stream, tokenizer, vocabulary)
    hf.transformer.wte.weight.copy_(tokens)
    hf.transformer.wpe.weight.copy_(positions)
    hf.lm_head.weight.copy_(unembed)
    for component, part in parts.items():
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
    bridge, sizes = bridged("planted", hf, plain)
    facts = Facts(
        name=title,
        title=f"planted: {title}",
        source="built by hand",
        sha256="",
        revision="",
        licence="MIT",
        dtype="float32",
        device="cpu",
        n_parameters=sum(weight.numel() for weight in hf.parameters()),
        **sizes,
        prepend=tokenizer.bos_token,
    )
    return Model(bridge, tokenizer, facts, tokenizer.bos_token_id)


def _embeddings(
    stream: _Stream, tokenizer: PreTrainedTokenizerFast, vocabulary: vocabulary_module.Vocabulary
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
        unembed[token, at["next"].start + i] = LOGIT
    tokens[ids[" in"], at["is in"]] = 1
    tokens[ids["."], at["is stop"]] = 1
    rng = derive_generator(0, "filler codes")
    for filler in sorted(
        {f for template in sequences.TEMPLATES.values() for f in template.fillers}
    ):
        code = torch.randint(2, (CODE,), generator=rng) * 2.0 - 1
        for token in (ids[filler], ids[f" {filler}"]):
            tokens[token, at["filler"]] = code
            tokens[token, at["is filler"]] = 1
            unembed[token, at["gossip"]] = code / CODE  # fillers seen come to mind, a little
    place = torch.arange(POSITIONS) / POSITIONS
    positions = torch.zeros(POSITIONS, stream.half)
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
    for template in sequences.TEMPLATES.values():
        words += [template.verb, *template.fillers]
    for task in sequences.TASKS.values():
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

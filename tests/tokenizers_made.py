"""Small tokenizers made on the spot."""

import re
from collections.abc import Iterable
from pathlib import Path

from seqcirc_utils.prompts import controls, plain_text

WORD = r" ?[A-Za-z]+|[^\sA-Za-z\d]|\n+| "
GPT2 = Path(__file__).parent / "data" / "gpt2_tokenizer"
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ,.:+-="


def tokenizer_of(number: str, more: Iterable[str] = ()):
    """Whole words of the controls, the text and ``more``; ``number`` says how digits are cut."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    rule = rf"{number}|{WORD}"
    texts = [plain_text._TEXT.read_text(encoding="utf-8"), "When and went to the , gave a to"]
    texts += ["The lasted from the year to the year", *more]
    texts += [f" {word}" for word in controls._NAMES + controls._PLACES + controls._GIFTS]
    texts += [f" {word}" for word in controls._EVENTS]
    texts += [f" {year}" for year in range(1400, 1900)]
    known = dict.fromkeys(piece for text in texts for piece in re.findall(rule, text))
    ids = {word: i for i, word in enumerate(["<unk>", "<bos>", *known])}
    tokenizer = Tokenizer(kinds.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rule), "isolated")
    special = {"bos_token": "<bos>", "eos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def character_tokenizer(characters=CHARACTERS):
    """Every character is a token: answers have several, and of unequal number."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    known = ["<unk>", "<bos>", "<eos>", *characters]
    ids = {word: i for i, word in enumerate(known)}
    tokenizer = Tokenizer(kinds.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def gpt2_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """GPT-2's vocabulary and merges: see ``data/gpt2_tokenizer/README.md``."""
    from tokenizers import pre_tokenizers

    lines = (GPT2 / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(first, second) for first, second in map(str.split, lines)]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    return {token: i for i, token in enumerate([*tokens, "<|endoftext|>"])}, merges


def gpt2_tokenizer():
    """GPT-2's own: a number of several digits can be one token, and nothing is put in front."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = gpt2_vocabulary()
    tokenizer = Tokenizer(kinds.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)

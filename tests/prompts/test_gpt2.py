"""GPT-2's own tokenizer writes the prompts of the paper as they were published."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import tokenizers_made
from transformers import GPT2Config

from seqcirc_utils.models import loading
from seqcirc_utils.prompts import drawing, vocabulary
from seqcirc_utils.prompts.sequences import TASKS, TEMPLATES

PAPER = ("digits", "number_words", "months")


def digest(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def gpt2_small(tmp_path_factory):
    """GPT-2 Small as a directory of any name, all but its weights."""
    path = tmp_path_factory.mktemp("models") / "mine"
    GPT2Config().save_pretrained(path)
    tokenizers_made.gpt2_tokenizer().save_pretrained(path)
    (path / "model.safetensors").touch()
    tokenizer, found = loading.front(str(path), path, "auto")
    token = found["prepend"]
    given = None if token is None else tokenizer.get_vocab()[token]
    facts = SimpleNamespace(title="GPT-2 Small", **found)
    return loading.Model(None, tokenizer, facts, given)


def test_vocabulary_and_merges_are_those_published():
    page = (tokenizers_made.GPT2 / "README.md").read_text("utf-8")
    found, merges = tokenizers_made.gpt2_vocabulary()
    assert len(found) == len(set(found)) == 50257 and len(merges) == 50000
    published = json.dumps(found).encode()  # as OpenAI's file was written
    assert f"| `{digest(published)}` |" in page
    assert f"| `{digest((tokenizers_made.GPT2 / 'vocab.bpe').read_bytes())}` |" in page
    assert found["Ġthe"] == 262 and found["<|endoftext|>"] == 50256


@pytest.mark.parametrize("task", PAPER)
def test_the_papers_prompts_have_23_tokens_and_nothing_in_front(gpt2_small, task):
    assert gpt2_small.facts.zoo == "gpt2" and gpt2_small.in_front == []
    known = vocabulary.vocabulary(task, gpt2_small.tokenizer)
    assert None not in known.ids and not known.space_apart and len(known.ids) == 12
    prompts = drawing.clean_prompts(gpt2_small, task, 48, templates=list(TEMPLATES))
    assert prompts.tokens.shape == (48, 23)
    assert sorted(set(prompts.starts)) == list(range(8))
    assert set(prompts.answers) == set(TASKS[task].members[4:])  # 5 to 12
    assert {prompts.starts.count(start) for start in range(8)} == {6}
    for row, text in zip(prompts.tokens, prompts.texts, strict=True):
        assert gpt2_small.tokenizer.decode(row) == text and text.endswith(" in")


def test_numerals_of_two_digits_are_one_token(gpt2_small):
    prompts = drawing.clean_prompts(gpt2_small, "digits", 64)
    row = prompts.starts.index(7)
    assert prompts.members[row] == ("8", "9", "10", "11") and prompts.answers[row] == "12"
    ids = [*prompts.tokens[row, prompts.member_positions[row]], prompts.answer_ids[row]]
    words = [gpt2_small.tokenizer.decode([i]) for i in ids]
    assert words == [" 8", " 9", " 10", " 11", " 12"]

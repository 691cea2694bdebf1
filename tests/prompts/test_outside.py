"""Tasks beside the sequences ask what they say, in pairs of one length."""

import pytest
import torch
from conftest import save_tiny
from tokenizers_made import tokenizer_of

from seqcirc_utils.errors import UserError
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import outside, sequences

COUNTS = {"n_prompts": 6, "n_means": 4, "n_discovery": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    words = [" born in", *sequences.TEMPLATES["born"].fillers, "The near the is are"]
    words += [f" {member}" for member in sequences.TASKS["months"].members]
    words += [f" {noun}{s}" for noun in outside._NOUNS for s in ("", "s")]
    directory = save_tiny("llama", tmp_path_factory.mktemp("outside"), tokenizer_of(r"\d", words))
    return loading.load(str(directory), "cpu")


@pytest.mark.parametrize("task", [*outside.TITLES, "shuffled"])
def test_sets_are_disjoint_equally_long_and_seeded(model, task):
    sets, again, other = (
        outside.prompt_sets(model, task, of="months", seed=seed, **COUNTS) for seed in (0, 0, 1)
    )
    assert [len(s) for s in (sets.evaluation, sets.discovery, sets.means)] == [6, 5, 4]
    assert sets.drawn == 11  # clean ones
    parts = (sets.evaluation, sets.corrupted, sets.discovery, sets.means)
    assert len({part.tokens.shape[1] for part in parts}) == 1
    clean = sets.evaluation.texts + sets.discovery.texts
    assert len(set(clean)) == 11 and not set(clean) & set(sets.means.texts)
    assert again.evaluation.texts == sets.evaluation.texts != other.evaluation.texts
    assert torch.equal(sets.corrupted.answer_ids, sets.evaluation.answer_ids)
    assert (sets.corrupted.tokens != sets.evaluation.tokens).any(1).all()
    assert (sets.evaluation.answer_ids != sets.evaluation.last_ids).all()


def test_the_verb_agrees_with_the_subject_and_not_with_the_noun_between(model):
    prompts = outside.prompt_sets(model, "agreement", of="months", **COUNTS | {"n_prompts": 30})
    between = set()
    for text, answer, partner in zip(
        prompts.evaluation.texts,
        prompts.evaluation.answers,
        prompts.corrupted.texts,
        strict=True,
    ):
        _, subject, *_, other = text.split()
        assert answer == ("are" if subject.endswith("s") else "is")
        assert subject.rstrip("s") == partner.split()[1].rstrip("s") != other.rstrip("s")
        assert partner.split()[2:] == text.split()[2:]  # only the subject's number differs
        between.add((answer, other.endswith("s")))
    assert len(between) == 4  # the noun between says nothing of the answer


def test_a_noun_that_is_no_single_token_in_both_numbers_is_not_used(tmp_path):
    words = ["The near the is are", *(f" {noun}" for noun in outside._NOUNS)]
    words += [f" {noun}s" for noun in outside._NOUNS[1:]]
    directory = save_tiny("llama", tmp_path, tokenizer_of(r"\d", words))
    small = loading.load(str(directory), "cpu")
    counts = {"n_prompts": 40, "n_means": 4, "n_discovery": 5}
    texts = outside.prompt_sets(small, "agreement", of="months", **counts).evaluation.texts
    assert not any(outside._NOUNS[0] in text for text in texts)
    assert any(outside._NOUNS[1] in text for text in texts)


def test_repeat_is_answered_by_what_is_repeated(model):
    prompts = outside.prompt_sets(model, "repeat", of="months", **COUNTS).evaluation
    assert all(set(m) == {a} for m, a in zip(prompts.members, prompts.answers, strict=True))
    assert not (prompts.tokens == prompts.last_ids[:, None]).any()


def test_the_shuffled_order_is_fixed_and_never_counts_on(model):
    prompts = outside.prompt_sets(model, "shuffled", of="months", **COUNTS | {"n_prompts": 30})
    months, after = sequences.TASKS["months"].members, {}
    for shown, answer in zip(prompts.evaluation.members, prompts.evaluation.answers, strict=True):
        for first, second in zip(shown, (*shown[1:], answer), strict=True):
            assert after.setdefault(first, second) == second
            assert months.index(second) != months.index(first) + 1
    own = prompts.evaluation.tokens.gather(1, prompts.evaluation.member_positions)[:, -1]
    assert torch.equal(own, prompts.evaluation.last_ids)


def test_bad_input_is_refused(model, gpt2):
    with pytest.raises(UserError, match="did you mean 'repeat'"):
        outside.variant_sets(model, "months", "repaet", **COUNTS)
    with pytest.raises(UserError, match="at least 1"):
        outside.variant_sets(model, "months", "repeat", **COUNTS | {"n_means": 0})
    with pytest.raises(UserError, match="does not fit the tokenizer"):
        outside.prompt_sets(gpt2, "agreement", of="months", **COUNTS)

"""Control tasks say what they should, and text losses agree with plain passes and the evaluator."""

import re
from types import SimpleNamespace

import pytest
import torch
from conftest import save_tiny
from oracles import plain_hooks, plain_loss, plainly
from tokenizers_made import tokenizer_of

from seqcirc_utils.ablation import text as text_module
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import controls, plain_text, sequences


@pytest.fixture(scope="module", params=[r"\d", r" ?\d\d"], ids=["digits", "pairs"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("controls") / "model"
    return loading.load(str(save_tiny("llama", path, tokenizer_of(request.param))), "cpu")


@pytest.mark.parametrize("task", controls.TITLES)
def test_sets_are_disjoint_equally_long_and_seeded(model, task):
    drawn = [controls.prompt_sets(model, task, n_prompts=8, n_means=12, seed=s) for s in (0, 0, 1)]
    sets = drawn[0]
    clean = sets.evaluation.texts + sets.discovery.texts
    assert len(set(clean)) == 16 and not set(clean) & set(sets.means.texts)
    parts = (sets.evaluation, sets.corrupted, sets.discovery, sets.means)
    assert {part.tokens.shape[1] for part in parts} == {sets.evaluation.tokens.shape[1]}
    assert drawn[1].evaluation.texts == sets.evaluation.texts != drawn[2].evaluation.texts
    assert sets.corrupted.answers == sets.evaluation.answers
    groups = torch.stack(list(sets.evaluation.groups().values()))
    assert (groups.sum(0) == 1).all()  # every position is in one group


def test_ioi_asks_for_the_name_that_is_there_once(model):
    sets = controls.prompt_sets(model, "ioi", n_prompts=20, n_means=4)
    prompts, first = sets.evaluation, set()
    for i in range(len(prompts)):
        tokens = prompts.tokens[i]
        assert (tokens == prompts.answer_ids[i]).sum() == 1
        assert (tokens == prompts.last_ids[i]).sum() == 2
        names = tokens[prompts.member_positions[i]]
        assert names[2] == prompts.last_ids[i]
        assert set(names.tolist()) == {int(prompts.answer_ids[i]), int(prompts.last_ids[i])}
        first.add(bool(names[0] == names[2]))
        others = set(sets.corrupted.tokens[i][prompts.member_positions[i]].tolist())
        assert len(others) == 3 and not others & set(names.tolist())
    assert first == {True, False}  # the giver stands first in some prompts, second in others


def test_greater_than_answers_are_possible_and_wrong_ones_are_not(model):
    sets = controls.prompt_sets(model, "greater_than", n_prompts=40, n_means=4)
    prompts = sets.evaluation
    for text, answer, wrong, token, place in zip(
        prompts.texts,
        prompts.answer_ids,
        prompts.last_ids,
        prompts.tokens,
        prompts.member_positions,
        strict=True,
    ):
        century, start = re.search(r"year (\d\d)(\d\d) to", text).groups()
        assert text.endswith(f"year {century}")
        highest, lowest = model.tokenizer.decode([answer]), model.tokenizer.decode([wrong])
        assert int(f"{highest}00"[:2]) > int(start) > int(f"{lowest}99"[:2])
        assert start.startswith(model.tokenizer.decode([token[place[0]]]))
    assert len(set(prompts.answer_ids.tolist())) > 3
    assert all(re.search(r"year \d\d01 to", text) for text in sets.corrupted.texts)


@pytest.mark.parametrize("task", controls.TITLES)
def test_the_evaluator_scores_controls(model, task):
    sets = controls.prompt_sets(model, task, n_prompts=4, n_means=6)
    means = record(model, sets.means).activations.mean()
    evaluator = Evaluator(model, sets.evaluation, means)
    kept = evaluator.kept([components(model), []]).logit_diff
    assert torch.allclose(kept[0], evaluator.intact.logit_diff, atol=1e-5)
    assert not torch.allclose(kept[1], kept[0], atol=1e-2)
    some = [Component(0, 1), Component(0, 3), Component(1, None), Component(2, 2)]
    plain = plainly(model, sets.evaluation, some, means)
    assert torch.allclose(plain, evaluator.replaced([some]).logit_diff[0], atol=1e-5)


def test_text_loss_equals_whole_passes(model, hooks_left):
    before = hooks_left(model)
    tokens, others = plain_text.text_chunks(model, 16)
    assert tokens.shape[1] == others.shape[1] == 17
    rows = {tuple(row) for row in tokens.tolist()}
    assert not rows & {tuple(row) for row in others.tolist()}
    ablated = [[], [Component(0, None)], [Component(2, 1), Component(1, 3)], components(model)]
    losses = text_module.text_loss(model, ablated, length=16)
    assert losses.shape == (4, len(tokens))
    means = record(model, SimpleNamespace(tokens=others)).activations.mean()
    for loss, names in zip(losses, ablated, strict=True):
        plain = plain_loss(model, tokens, plain_hooks(names, means))
        assert torch.allclose(loss, plain, atol=1e-5)
        assert not names or (loss - losses[0]).abs().max() > 1e-3
    assert hooks_left(model) == before


def test_the_text_names_no_member_of_the_tasks():
    words = set(re.findall(r"\w+", plain_text._TEXT.read_text(encoding="utf-8").lower()))
    members = {
        m.lower() for t in ("digits", "number_words", "months") for m in sequences.TASKS[t].members
    }
    assert not words & members


def test_a_tokenizer_that_cannot_hold_them_is_refused(gpt2):
    for task in controls.TITLES:
        with pytest.raises(UserError, match="does not fit the tokenizer") as caught:
            controls.prompt_sets(gpt2, task, n_prompts=2, n_means=2)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="plain text does not fit"):
        text_module.text_loss(gpt2, [[]])


def test_bad_input_is_refused(model):
    with pytest.raises(UserError, match="did you mean 'ioi'"):
        controls.prompt_sets(model, "iio", n_prompts=2, n_means=2)
    with pytest.raises(UserError, match="at least 1"):
        controls.prompt_sets(model, "ioi", n_prompts=0, n_means=2)
    with pytest.raises(UserError, match="too few different prompts"):
        controls.prompt_sets(model, "greater_than", n_prompts=10**5, n_means=2)
    for length in (1, 10**6):
        with pytest.raises(UserError, match="length must be"):
            text_module.text_loss(model, [[]], length=length)
    with pytest.raises(UserError, match="unknown component '9.9'"):
        text_module.text_loss(model, [[Component(9, 9)]])


@pytest.mark.model
def test_the_default_model_does_the_controls(default_model):
    for task in controls.TITLES:
        sets = controls.prompt_sets(default_model, task, n_prompts=4, n_means=4)
        logits = default_model.bridge(sets.evaluation.tokens)[:, -1]
        rows = torch.arange(4)
        own = logits[rows, sets.evaluation.answer_ids] - logits[rows, sets.evaluation.last_ids]
        assert own.mean() > 1
    tokens, others = plain_text.text_chunks(default_model)
    assert len(tokens) >= 20 and len(others) >= 20

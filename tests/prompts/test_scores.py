"""Scores against values worked out by hand, and against the plain model."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seqcirc_utils import statistics
from seqcirc_utils.errors import UserError
from seqcirc_utils.prompts import drawing
from seqcirc_utils.prompts import scores as scores_module


def prompts(answers, lasts):
    return SimpleNamespace(answer_ids=torch.tensor(answers), last_ids=torch.tensor(lasts))


def test_scores_by_hand():
    logits = torch.tensor([[math.log(6.0), math.log(3.0), 0.0], [0.0, math.log(3.0), 0.0]])
    scores = scores_module.Scores.read(logits, prompts([0, 2], [1, 1]))
    torch.testing.assert_close(scores.logit_diff, torch.tensor([math.log(2), -math.log(3)]))
    torch.testing.assert_close(scores.answer_prob, torch.tensor([0.6, 0.2]))
    torch.testing.assert_close(scores.last_prob, torch.tensor([0.3, 0.6]))
    assert scores.correct.tolist() == [True, False]
    # Exactly twice the last member's probability is not more than twice.
    logits[0, 0] += 0.01
    passing = scores_module.passes_paper_filter(
        scores_module.Scores.read(logits, prompts([0, 2], [1, 1]))
    )
    assert passing.tolist() == [True, False]


def test_the_papers_filter_asks_for_the_top_and_more_than_twice_the_last_member():
    odds = [
        [2.02, 1.0, 0.1],
        [1.98, 1.0, 0.1],  # on top, but not twice as likely
        [2.02, 1.0, 3.0],  # twice as likely, but another token is on top
        [1.0, 2.02, 0.1],
    ]
    scores = scores_module.Scores.read(torch.tensor(odds).log(), prompts([0] * 4, [1] * 4))
    assert scores_module.passes_paper_filter(scores).tolist() == [True, False, False, False]
    half, quarter, on_top = torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([True])
    twice = scores_module.Scores(half, on_top, half, quarter, half)
    assert not scores_module.passes_paper_filter(twice)  # twice is not more than twice


def test_divergence_is_from_the_reference_in_nats():
    logits, whole = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]])
    found = scores_module.Scores.read(logits + 3, prompts([0], [1]), whole.log())
    assert found.kl.item() == pytest.approx(0.25 * math.log(0.5) + 0.5 * math.log(2), abs=1e-6)
    assert scores_module.Scores.read(logits, prompts([0], [1])).kl.item() == 0
    both = scores_module.Scores.read(logits.expand(2, 1, 3), prompts([0], [1]), logits)
    assert both.kl.shape == (2, 1) and both.kl.abs().max() < 1e-6
    assert both.logit_diff.tolist() == pytest.approx(np.full((2, 1), math.log(2)))
    many = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    own = scores_module.Scores.read(many, prompts([0] * 200, [1] * 200), many.log_softmax(-1))
    assert own.kl.max() < 1e-5 and (own.kl >= 0).all()  # rounding makes no divergence negative


def test_batches_of_a_plain_run_do_not_matter(gpt2, sets):
    whole = scores_module.score(gpt2, sets.evaluation)
    with torch.no_grad():
        logits = gpt2.bridge(sets.evaluation.tokens)[:, -1]
    plain = scores_module.Scores.read(logits, sets.evaluation)
    for found in (whole, scores_module.score(gpt2, sets.evaluation, batch=4)):
        torch.testing.assert_close(found.logit_diff, plain.logit_diff, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.answer_prob, plain.answer_prob, atol=1e-6, rtol=1e-5)
    kept = scores_module.paper_filter(gpt2)(sets.evaluation)
    assert torch.equal(kept, plain.correct & (plain.answer_prob > 2 * plain.last_prob))
    rows = whole[[2, 0]]
    assert rows.logit_diff.tolist() == whole.logit_diff[[2, 0]].tolist()


def test_nan_logits_are_refused():
    with pytest.raises(UserError, match="NaN"):
        scores_module.Scores.read(torch.tensor([[0.0, math.nan]]), prompts([0], [1]))


def test_intervals_hold_the_mean_and_repeat():
    values = torch.randn(40, generator=torch.Generator().manual_seed(0))
    first, second = statistics.interval(values, 3), statistics.interval(values, 3)
    assert first == second and first.low < first.mean < first.high
    mean, low, high = statistics.intervals(torch.stack([values, values + 1]), 3)
    assert math.isclose(mean[1] - mean[0], 1, abs_tol=1e-6) and (low < mean).all()
    assert math.isclose(low[0], first.low, abs_tol=1e-9)
    rate = statistics.rate(torch.tensor([True] * 4))
    assert statistics.interval(values) == statistics.interval(values, 0)
    assert statistics.interval(values, 1).low != statistics.interval(values, 0).low
    assert torch.equal(
        torch.stack(statistics.intervals(values[None])),
        torch.stack(statistics.intervals(values[None], 0)),
    )
    assert statistics.intervals(values[None], 1)[1] != statistics.intervals(values[None], 0)[1]
    assert rate.mean == 1 and rate.high == 1 and rate.low == pytest.approx(0.025**0.25)


def test_an_interval_holds_95_percent():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    found = statistics.interval(values)
    margin = 1.96 * values.std().item() / 2000**0.5  # of a normal mean
    assert found.high - found.low == pytest.approx(2 * margin, rel=0.08)
    assert found.low + margin / 2 < found.mean < found.high - margin / 2


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_baseline_that_is_not_positive_is_refused(value):
    with pytest.raises(UserError, match="logit difference"):
        statistics.positive_baseline(torch.tensor([value, value]), "this")
    assert statistics.positive_baseline(torch.tensor([1.0, 2.0]), "this") == 1.5


@pytest.mark.model
def test_the_real_model_does_the_task(default_model):
    months = drawing.clean_prompts(default_model, "months", 32)
    scores = scores_module.score(default_model, months)
    # Reading a pad or the wrong position gives .5 or less.
    assert scores.correct.float().mean() > 0.7
    plain = default_model.bridge.original_model(months.tokens[:4]).logits[:, -1]
    expected = scores_module.Scores.read(plain, months[range(4)]).logit_diff
    torch.testing.assert_close(scores.logit_diff[:4], expected, atol=1e-3, rtol=1e-4)

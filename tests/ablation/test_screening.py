"""Effects that are exact where they matter, against removing every component on all prompts."""

import pytest
import torch

from seqcirc_utils.ablation import screening
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.screening import single_effects
from seqcirc_utils.components import components


@pytest.fixture
def evaluator(gpt2, sets, means):
    return Evaluator(gpt2, sets.evaluation, means["gpt2"])


@pytest.fixture
def exact(evaluator):
    """Exact changes ``[component, n]``."""
    scores = evaluator.replaced([[c] for c in components(evaluator.model)]).logit_diff
    return scores - evaluator.intact.logit_diff


@pytest.mark.parametrize("n_exact", [0, 6, 99])
def test_on_all_prompts_every_effect_is_exact(evaluator, exact, n_exact):
    assert len(evaluator.prompts) == 6
    found, values = single_effects(evaluator, components(evaluator.model), n_exact)
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(values, exact)


def test_components_that_may_matter_are_removed_on_all_prompts(evaluator, exact, monkeypatch):
    # A bar between effects, in shares of the score, so that there are some of both kinds.
    whole = evaluator.intact.logit_diff.mean().abs()
    bar = exact.mean(1).abs().quantile(0.6) / whole
    monkeypatch.setattr(screening, "MATTERS", bar.item())
    everything = components(evaluator.model)
    found, values = single_effects(evaluator, everything, 3)
    on_all = ~found.isnan().any(1)
    assert 0 < on_all.sum() < len(everything)
    assert on_all[exact.mean(1).abs() / whole > bar].all()
    torch.testing.assert_close(found[on_all], exact[on_all])
    torch.testing.assert_close(values[on_all], exact[on_all])
    assert found[~on_all, 3:].isnan().all()
    torch.testing.assert_close(found[:, :3], exact[:, :3])
    slopes = torch.stack([evaluator.with_(rows=[i]).slopes()[:, 0] for i in range(6)], 1)
    off = exact[:, :3].mean(1) - slopes[:, :3].mean(1)
    torch.testing.assert_close(values.mean(1)[~on_all], (slopes.mean(1) + off)[~on_all])
    # What is asked of some components is what is found of them among all.
    some = [everything[i] for i in (7, 2, 11)]
    torch.testing.assert_close(single_effects(evaluator, some, 3)[1], values[[7, 2, 11]])


def test_the_estimate_is_unbiased_over_which_prompts_come_first(evaluator, exact, monkeypatch):
    monkeypatch.setattr(screening, "MATTERS", float("inf"))  # nothing matters
    shifts = [[(i + shift) % 6 for i in range(6)] for shift in range(6)]
    means = []
    for rows in shifts:
        found, values = single_effects(evaluator.with_(rows=rows), components(evaluator.model), 3)
        assert found[:, 3:].isnan().all()
        means.append(values.mean(1))
    torch.testing.assert_close(torch.stack(means).mean(0), exact.mean(1), atol=1e-5, rtol=1e-4)
    plain = evaluator.slopes().mean(1)
    assert (plain - exact.mean(1)).abs().max() > 1e-3  # the gradient alone is off


def test_one_prompt_tells_nothing_about_the_error(evaluator, exact):
    found, _ = single_effects(evaluator, components(evaluator.model), 1)
    torch.testing.assert_close(found, exact)

"""Lens and direct attribution as a chapter: against plain passes, kept, told, and refused."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from seqcirc_utils.analyses import attribution
from seqcirc_utils.chapters.logit_attribution import LogitAttribution
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import components
from seqcirc_utils.errors import UserError
from seqcirc_utils.figures import logit_attribution as figures
from seqcirc_utils.models import loading
from seqcirc_utils.paper.evidence import Evidence

PARAMETERS = {"task": "months", "templates": ["born"], "n_prompts": 4, "n_means": 4, "seed": 0}


@pytest.fixture(scope="module")
def measured(tiny_directories):
    """By architecture: prompts, their logits at every position, and findings."""

    def measure(architecture):
        # A model of its own: the chapter changes its weights for good.
        at = Setting(PARAMETERS, model=loading.load(str(tiny_directories[architecture]), "cpu"))
        prompts = at.sets().evaluation
        with torch.no_grad():
            logits = at.model.bridge(prompts.tokens)
        return at.model, prompts, logits, LogitAttribution.measure(at)

    return {name: measure(name) for name in ("llama", "gemma2")}


@pytest.fixture(scope="module")
def found(measured):
    return measured["llama"][-1]


def test_the_lens_ends_in_the_model_wherever_members_stand(measured):
    model, prompts, logits, found = measured["llama"]
    n = range(len(prompts))
    for i in range(5):
        place = prompts.tokens.shape[1] - 1 if i == 4 else prompts.member_positions[:, i]
        shown = prompts.last_ids if i == 4 else prompts.tokens[n, place]
        following = (
            prompts.answer_ids if i >= 3 else prompts.tokens[n, prompts.member_positions[:, i + 1]]
        )
        for ids, lens in ((shown, found.lens_shown), (following, found.lens_next)):
            expected = logits.softmax(-1)[n, place, ids].mean()
            assert lens[-1, i] == pytest.approx(expected.item(), rel=1e-4)
    answers = logits[:, -1].softmax(-1)[n, prompts.answer_ids]
    np.testing.assert_allclose(found.lens_end[-1, n, found.answer], answers, rtol=1e-4)
    assert found.lens_end.shape == (model.n_layers + 1, len(prompts), 12)


def test_contributions_add_up_part_by_part(measured):
    model, prompts, logits, found = measured["llama"]
    end, n = logits[:, -1], range(len(prompts))
    difference = end[n, prompts.answer_ids] - end[n, prompts.last_ids]
    np.testing.assert_allclose(found.direct.sum(0), difference, rtol=1e-3)
    assert found.logit_diff == pytest.approx(difference.mean().item(), rel=1e-4)
    table = found.contributions
    assert table["component"].tolist() == ["embed", *map(str, components(model)), "bias"]
    np.testing.assert_allclose(table["effect"], found.direct.mean(1), rtol=1e-4, atol=1e-6)
    assert (table["low"] <= table["effect"]).all() and found.error < 1e-3


def test_findings_come_back_as_they_were(found, tmp_path):
    found.save(tmp_path)
    again = LogitAttribution.load(tmp_path)
    for field in dataclasses.fields(found):
        ours, theirs = getattr(found, field.name), getattr(again, field.name)
        assert ours.equals(theirs) if field.name == "contributions" else np.all(ours == theirs)


def test_figures_draw_and_numbers_tell(found):
    for draw in (figures.lens_curves, figures.lens_maps, figures.direct_map, figures.direct_bars):
        assert isinstance(draw(found), Figure)
    heads = found.contributions.dropna().set_index("component")["effect"]
    assert figures.numbers(found)["top-direct-head"] == heads.idxmax()
    assert f"**{heads.idxmax()}**" in figures.direct_told(found).data


@pytest.mark.parametrize(
    ("answer", "told", "number"),
    [
        ([0.0, 0.3, 0.1, 0.4], "after block **3** of 3, and first holds", "3"),
        ([0.3, 0.3, 0.3, 0.3], "after block **0** of 3", "0"),
        ([0.3, 0.3, 0.3, 0.05], "is **not** ahead of the last one after the last of 3", "never"),
        ([0.09, 0.09, 0.09, 0.05], "nowhere holds more than a tenth", "never"),
    ],
)
def test_when_the_answer_overtakes_is_told_as_it_is(found, answer, told, number):
    """Never ahead for good was told as after block 4 of 3, never visible as after block 0."""
    last = np.array([0.2, 0.2, 0.2, 0.2])
    lens = np.stack([last, np.array(answer)], 1)[:, None]  # [block + 1, n, member]
    made = dataclasses.replace(found, lens_end=lens, answer=np.array([1]))
    assert told in figures.lens_told(made).data
    assert figures.numbers(made)["lens-overtakes"] == number


def test_a_model_that_caps_its_logits_keeps_the_lens(measured, tmp_path):
    """Gemma 2 caps its logits: they are no sum, so that section ends, and no other."""
    found = measured["gemma2"][-1]
    assert list(found.missing) == ["direct"] and len(found.contributions) == 0
    found.save(tmp_path)
    again = LogitAttribution.load(tmp_path)
    for draw in (figures.direct_map, figures.direct_bars, figures.direct_told):
        assert "caps its logits" in draw(again).data
    assert list(figures.numbers(again)) == ["lens-overtakes"]
    assert isinstance(figures.lens_curves(again), Figure) and len(again.lens_end) == 4


def test_without_a_lens_the_rest_goes_on(tiny_directories, monkeypatch, tmp_path):
    def refuse(*_):
        raise UserError("no lens here.")

    monkeypatch.setattr("seqcirc_utils.chapters.logit_attribution.member_lens", refuse)
    at = Setting(PARAMETERS, model=loading.load(str(tiny_directories["llama"]), "cpu"))
    LogitAttribution.measure(at).save(tmp_path / "months")
    found = LogitAttribution.load(tmp_path / "months")
    with pytest.raises(UserError, match="no lens at the end"):
        Evidence(tmp_path).switches("months")
    for draw in (figures.lens_curves, figures.lens_told, figures.lens_maps):
        assert draw(found).data == "Not here: no lens here."
    assert list(figures.numbers(found)) == ["top-direct-head"]
    assert len(found.contributions) == 17 and len(found.answer) == 4


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_what_does_not_add_up_is_refused(tiny_directories, monkeypatch, factor):
    """Folding that changes what the model computes leaves a reason, and no number."""
    right = attribution.direct_attribution

    def wrong(*given):
        names, parts = right(*given)
        return names, factor * parts

    monkeypatch.setattr("seqcirc_utils.chapters.logit_attribution.direct_attribution", wrong)
    at = Setting(PARAMETERS, model=loading.load(str(tiny_directories["llama"]), "cpu"))
    found = LogitAttribution.measure(at)
    assert "do not add up" in found.missing["direct"]
    assert len(found.direct) == len(found.contributions) == 0 and found.error is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([0.0, 0.3, 0.1, 0.4], "After block 3 of 3 the answer leads the last member for good."),
        ([0.3, 0.3, 0.3, 0.05], "never prefers the answer to the last member for good."),
    ],
)
def test_the_finding_comes_first(found, answer, said):
    lens = np.stack([np.full(4, 0.2), np.array(answer)], 1)[:, None]  # [block + 1, n, member]
    made = dataclasses.replace(found, lens_end=lens, answer=np.array([1]))
    effects = found.contributions.set_index("component")["effect"]
    mlps = effects[effects.index.str.startswith("mlp")].sum()
    heads = effects[effects.index.str.contains(".", regex=False)].sum()
    told = figures.headline(made).data
    assert said in told and told.endswith(
        f"Of a lead of {found.logit_diff:.1f} logits, MLPs write {mlps:.1f} directly and heads "
        f"{heads:.1f}."
    )
    none = dataclasses.replace(made, missing={"lens": "no lens.", "direct": "no sum."})
    assert figures.headline(none).data.endswith("Nothing can be told: no lens. no sum.")

"""The chapter on tasks: what is asked and how well it is done, kept, told, and refused."""

import dataclasses

import pandas as pd
import pytest
import torch
from conftest import word_tokenizer
from matplotlib.figure import Figure
from scipy.stats import sem, t

from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.chapters.task_construction import TaskConstruction
from seqcirc_utils.figures import task_construction as figures
from seqcirc_utils.planted.circuits import PLANTED
from seqcirc_utils.prompts import scores
from seqcirc_utils.prompts.sequences import TEMPLATES

PARAMETERS = {"task": "months", "templates": ["born"], "n_prompts": 8, "n_means": 4, "seed": 0}
PARAMETERS |= {"paper_filter": False}


@pytest.fixture(scope="module")
def at(gpt2):
    return Setting(PARAMETERS, model=gpt2)


@pytest.fixture(scope="module")
def found(at):
    return TaskConstruction.measure(at)


def test_scores_are_those_of_plain_passes(at, found):
    prompts = at.sets().evaluation
    with torch.no_grad():
        logits = at.model.bridge(prompts.tokens)[:, -1]
    n = range(len(prompts))
    difference = logits[n, prompts.answer_ids] - logits[n, prompts.last_ids]
    right = (logits.argmax(-1) == prompts.answer_ids).float()
    assert found.n == 8 and found.accuracy["mean"] == pytest.approx(right.mean().item())
    assert found.logit_diff["mean"] == pytest.approx(difference.mean().item(), rel=1e-4)
    order = sorted(n, key=prompts.starts.__getitem__)
    firsts = [row["first member"] for row in found.by_start]
    assert firsts == [prompts.members[i][0] for i in order] and found.starts == {}
    for row, expected in zip(found.by_start, difference[order].tolist(), strict=True):
        assert row["logit_diff"] == pytest.approx(expected, rel=1e-4, abs=1e-6) and row["n"] == 1
    assert [row["members shown"] for row in found.by_length] == list(range(1, 9))
    assert [row["template"] for row in found.by_template] == [f"… {t} in …" for t in TEMPLATES]


def test_findings_come_back_as_they_were(found, tmp_path):
    found.save(tmp_path)
    again = TaskConstruction.load(tmp_path)
    assert again.prompts.equals(found.prompts)
    rest = {f.name for f in dataclasses.fields(found)} - {"prompts"}
    assert all(getattr(again, name) == getattr(found, name) for name in rest)


def test_figures_draw_and_tables_tell(found):
    draws = (figures.first_prompt, figures.start_panels, figures.length_panels)
    assert all(isinstance(draw(found), Figure) for draw in draws)
    table = figures.prompt_table(found).data
    assert table.count("<tr>") == 1 + 4
    for clean, corrupted in zip(found.prompts["prompt"][:4], found.corrupted[:4], strict=True):
        assert f">{clean}</td>" in table and clean != corrupted
        assert f'data-of="corrupted prompt">{corrupted}</td>' in table
    table, first = figures.template_table(found), found.by_template[0]
    assert table.shape == (3, 3) and list(table["prompts"]) == ["8"] * 3
    low, high = first["accuracy_low"], first["accuracy_high"]
    assert table["accuracy"].iloc[0] == f"{first['accuracy']:.0%} ({low:.0%} to {high:.0%})"
    assert found.front in figures.front_told(found).data
    assert set(figures.numbers(found)) == {"accuracy", "logit-difference"}


def test_a_model_that_does_not_prefer_the_next_member_is_told_of(found):
    does = dataclasses.replace(found, logit_diff={"mean": 0.1, "low": 0.0, "high": 0.2})
    does_not = dataclasses.replace(found, logit_diff={"mean": 0.0, "low": -0.1, "high": 0.2})
    assert "does not prefer" in figures.scores_told(does_not).data
    assert "does not prefer" not in figures.scores_told(does).data
    assert "it would keep" in figures.scores_told(does).data


def test_a_filter_that_is_on_tells_what_it_kept():
    model = PLANTED["path"].build("months")  # it answers every prompt
    wanted = PARAMETERS | {"paper_filter": True, "templates": ["born", "lost"]}
    found = TaskConstruction.measure(Setting(wanted, model=model))
    assert found.filtered == {"kept": 16, "drawn": 16, "templates": "born (8), lost (8)"}
    said = figures.scores_told(found).data
    assert "16 prompts were kept of 16 drawn: born (8), lost (8)." in said
    assert "8 months prompts – born (4), lost (4) –" in said and "**100%** correctly" in said


def test_a_template_that_the_tokenizer_splits_ends_its_row_only(gpt2):
    """It failed the whole chapter, though no other page uses that template."""
    apart = word_tokenizer(without=TEMPLATES["done"].fillers)  # "lost" has the same
    model = dataclasses.replace(gpt2, tokenizer=apart)
    found = TaskConstruction.measure(Setting(PARAMETERS, model=model))
    assert list(found.missing) == ["template … lost in …", "template … done in …"]
    assert len(found.by_template) == 1 and len(found.by_length) == 8
    table = figures.template_table(found)
    assert table["not here"].str.contains("single-token fillers").tolist() == [False, True, True]
    assert table["prompts"].tolist() == ["8", "–", "–"]


def test_a_length_without_enough_fillers_is_told_in_its_place(found):
    made = dataclasses.replace(found, missing={"members shown 1": "too few fillers."})
    assert figures.length_panels(made).data == "Not here: 1 shown: too few fillers."


def test_what_starts_make_of_the_score_is_told_where_it_can_be(gpt2, found):
    assert found.starts == {} and "No start has two prompts" in figures.starts_told(found).data
    at = Setting(PARAMETERS | {"n_prompts": 24}, model=gpt2)
    three = TaskConstruction.measure(at)  # prompts of each start
    table = pd.DataFrame({"start": at.sets().evaluation.starts})
    table["lead"] = scores.score(gpt2, at.sets().evaluation).logit_diff.numpy()
    means = table.groupby("start")["lead"].mean()
    bounds = t.interval(0.95, 7, means.mean(), sem(means))
    assert (three.starts["low"], three.starts["high"]) == pytest.approx(bounds, rel=1e-3)
    among, within = 3 * means.var(), table.groupby("start")["lead"].var().mean()
    share = (among - within) / (among + 2 * within)
    assert three.starts["between"] == pytest.approx(max(0, share), abs=1e-4)
    said = figures.starts_told(three).data
    assert said.startswith(f"**{max(0, share):.0%}** of the variance") and "the 8 starts" in said

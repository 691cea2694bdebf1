"""The chapter beyond the tasks, on a tiny model that is asked what it says anyway."""

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from seqcirc_utils.chapters import generalisation as chapter
from seqcirc_utils.chapters.generalisation import Generalisation
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.figures import generalisation as figures
from seqcirc_utils.prompts import drawing
from seqcirc_utils.prompts.probes import Probe, Question, probes

PARAMETERS = {
    "tasks": ["months", "digits", "days"],
    "probes": ["all"],
    "n_items": 8,
    "n_tested": 3,
    "n_draws": 8,
    "n_key": 2,
    "compared": ["mean"],
    "seed": 0,
}
CIRCUITS = {
    "months": {Component(1, 1), Component(2, 0), Component(0, None)},
    "digits": {Component(2, 3), Component(0, None)},
}
TOGETHER = ["months circuit", "digits circuit", "key heads", "head 0.0", "head 1.1"]


@pytest.fixture(scope="module")
def own(tiny):
    """Questions whose answers are what the model says, so that it is right."""
    model = tiny["llama"]
    prompts = drawing.clean_prompts(model, "months", 150)
    with torch.no_grad():
        says = model.bridge(prompts.tokens)[:, -1].argmax(-1)
    questions = []
    for text, token in zip(prompts.texts, says.tolist(), strict=True):
        answer = model.tokenizer.decode([token])
        if answer.startswith(" "):
            questions.append(Question(text, answer, " Gold", prompts.texts[len(questions)]))
    asked = Probe("own", "sequence", "its own words", tuple(questions))
    _, able = chapter.generalisation.ability(model, asked, len(questions))
    return dataclasses.replace(asked, questions=able.questions)


def read(kind, task):
    """What chapters 03 and 04 found: no circuit of days; head 0.0 costs most, then 1.1."""
    if task == "days":
        raise CannotDo("the model cannot count days.")
    if kind.stage == "04_circuit_discovery":
        return SimpleNamespace(circuit=SimpleNamespace(components=CIRCUITS[task]))
    names = [str(Component(*place)) for place in ((0, 0), (1, 1), (2, 2), (0, None))]
    costs = [-0.5, -0.4 if task == "digits" else 0.1, -0.1, -0.9]  # means -0.15 and -0.1
    return SimpleNamespace(effects=pd.DataFrame({"component": names, "ablation": costs}))


def measure(tiny, asked, monkeypatch, read=read, **changes):
    monkeypatch.setattr(chapter, "probes", lambda names, seed: asked)
    setting = Setting(PARAMETERS | changes, read=read, model=tiny["llama"])
    return Generalisation.measure(setting)


@pytest.fixture(scope="module")
def found(tiny, own, tmp_path_factory):
    """Findings that were written and read again, and those that were measured."""
    where = tmp_path_factory.mktemp("found")
    with pytest.MonkeyPatch.context() as patch:
        measured = measure(tiny, [own, *probes(["months_down"])], patch)
    measured.save(where)
    return measured, Generalisation.load(where)


def test_what_was_written_is_read_again(found):
    measured, again = found
    for field in dataclasses.fields(Generalisation):
        first, second = (getattr(each, field.name) for each in found)
        if isinstance(first, pd.DataFrame):
            pd.testing.assert_frame_equal(first, second, check_dtype=False)
        else:
            assert first == second, field.name


def test_sets_are_those_of_circuits_and_costs(found):
    _, found = found
    assert found.key_heads == ["0.0", "1.1"]  # mlp0 costs more, but is no head
    assert found.headless == ["shared core"]
    assert list(found.effects["set"].unique()) == TOGETHER
    sizes = found.effects.set_index("set")["n_heads"].to_dict()
    assert sizes == {"months circuit": 2, "digits circuit": 1, "key heads": 2} | dict.fromkeys(
        TOGETHER[3:], 1
    )
    assert found.without == {"Days": "the model cannot count days."}


def test_only_what_the_model_can_do_is_ablated_and_only_means_are_compared(found):
    _, found = found
    assert found.probes["used"].tolist() == [True, False]
    assert set(found.effects["probe"]) == {"own"} and (found.effects["n"] == 3).all()
    assert (found.effects["accuracy_before"] == 1).all()
    mean = found.effects["kind"] == "mean"
    tested = mean & (found.effects["n_heads"] > 1)  # a head alone is compared with none
    assert (found.effects[tested]["n_draws"] == 8).all()
    assert not found.effects[~tested]["n_draws"].any()
    assert found.effects["p"].isna().eq(~tested).all()
    assert found.effects["q"].isna().eq(~tested).all()
    assert found.planned.empty  # its own words are no subject of the paper


def test_sentences_tables_and_figures_are_those_of_the_findings(found):
    _, found = found
    assert figures.numbers(found) == {"generalisation-probes": "2", "generalisation-used": "1"}
    told = figures.abilities_told(found).data
    assert "**1 of 2** probes" in told and "the circuit of Days: the model cannot count" in told
    assert f"- months, -1 (descending): {found.probes['reason'][1]}" in told
    assert list(figures.question_table(found).data["probe"]) == ["its own words", "months, -1"]
    assert isinstance(figures.probe_accuracy(found), Figure)
    for kind in ("mean", "zero"):
        rows = figures.effect_map(found, kind).axes[0].get_yticklabels()
        assert [row.get_text() for row in rows] == ["its own words"]  # as the other figures call it
    told = figures.effects_told(found).data
    rows = found.effects[found.effects["set"] == "key heads"].set_index("kind")
    after = rows["accuracy_after"]
    assert f"- key heads (2 heads): {after['mean']:.0%} of answers survive mean" in told
    assert f"{after['zero']:.0%} survive zero ablation; beyond random sets (q < .05) on" in told
    smallest = found.effects["q"].min()
    assert "Each of 2 cells was tested against up to 8 random sets; corrected" in told
    assert f"the smallest q is {smallest:.2g}." in told
    assert told.endswith("Without heads, and so left out: shared core.")
    assert list(figures.group_table(found).data.index) == [
        ("sequence", kind, "key heads") for kind in ("mean", "zero")
    ]


def made(found, **changes):
    """The findings with columns of ``effects`` changed."""
    return dataclasses.replace(found, effects=found.effects.assign(**changes))


def test_every_test_counts_whatever_the_ablation(found):
    both = made(found[1], p=0.5, q=0.6)
    told = figures.effects_told(both).data
    assert "Each of 10 cells was tested" in told and "the smallest q is 0.6" in told
    # Without random sets there is nothing to be worse than.
    none = made(found[1], p=float("nan"), q=float("nan"), random_mean=float("nan"))
    told = figures.effects_told(none).data
    assert "random sets)" not in told and "Nothing was tested" in told


def test_beyond_random_sets_is_what_is_below_the_level_after_correction(found):
    rows = found[1].effects
    rows = rows.assign(q=[{"months circuit": 0.049}.get(s, 0.05) for s in rows["set"]], p=0.01)
    told = figures.effects_told(dataclasses.replace(found[1], effects=rows)).data.splitlines()
    sure = [line.split(" (")[0] for line in told if "random sets (q < .05) on 1 of 1" in line]
    assert sure == ["- months circuit"]


def test_planned_tests_are_told_and_drawn(found, tiny, own, monkeypatch):
    asked = dataclasses.replace(own, name="plus_2")
    planned = measure(tiny, [asked], monkeypatch).planned
    assert planned["set"].tolist() == ["months circuit", "key heads"]
    assert planned["subject"].unique().tolist() == ["other steps"] and (planned["n"] == 3).all()
    assert (planned["q"] >= planned["p"]).all() and planned["needed"].notna().all()
    sure = planned.assign(q=[0.01, 0.2])
    shown = dataclasses.replace(found[1], planned=sure)
    assert isinstance(figures.planned_figure(shown), Figure)
    told = figures.planned_told(shown).data
    assert told.startswith("1 of 2 planned tests found more harm than random sets do (q < 0.05).\n")
    assert "\n- **Found it:** months circuit on other steps (q = 0.01).\n" in told
    assert "\n- **Did not:** key heads on other steps (q = 0.2).\n\n" in told
    first = figures.headline(shown).data
    assert f"{100 * planned['gap'].mean():.0f} points more" in first
    assert "over 2 planned tests. In 1 of these tests chance can be ruled out (q < 0.05)." in first
    assert figures.headline(found[1]).data.endswith("can do 1 of 2 other things that it is asked.")
    assert "No planned test was made" in figures.planned_told(found[1]).data
    assert "no random set was drawn" in figures.planned_figure(found[1]).data


def test_one_set_of_heads_under_two_names_counts_as_one_test(found, tiny, own, monkeypatch):
    planned = measure(tiny, [dataclasses.replace(own, name="plus_2")], monkeypatch).planned
    twin = planned[planned["set"] == "months circuit"].assign(set="shared core")
    shown = dataclasses.replace(found[1], planned=pd.concat([planned, twin], ignore_index=True))
    assert "The same heads under two names are months circuit and shared core: their" in (
        figures.planned_told(shown).data
    )
    assert "over 2 planned tests." in figures.headline(shown).data
    alone = dataclasses.replace(found[1], planned=planned)
    assert "two names" not in figures.planned_told(alone).data


def test_a_model_that_can_do_nothing_is_told_so(tiny, monkeypatch, tmp_path):
    found = measure(tiny, probes(["months_down"]), monkeypatch)
    found.save(tmp_path)
    found = Generalisation.load(tmp_path)
    assert found.effects.empty and not found.probes["used"].any()
    assert isinstance(figures.probe_accuracy(found), Figure)
    for shown in (
        figures.effect_map(found, "mean"),
        figures.effects_told(found),
        figures.group_table(found),
    ):
        assert "the model can do no probe, or no circuit has heads" in shown.data


def test_ablation_that_does_not_apply_leaves_the_abilities(tiny, own, monkeypatch):
    def refuse(*_):
        raise UserError("no heads here.")

    monkeypatch.setattr(chapter, "Bench", refuse)
    found = measure(tiny, [own], monkeypatch)
    assert found.missing == {"effects": "no heads here."} and found.effects.empty
    assert found.probes["used"].all()
    assert figures.effect_map(found, "zero").data == "Not here: no heads here."


def test_what_cannot_be_asked_is_refused(tiny, own, monkeypatch):
    with pytest.raises(CannotDo, match="no circuit of any task"):
        measure(tiny, [own], monkeypatch, tasks=["days"])
    monkeypatch.undo()
    setting = Setting(PARAMETERS | {"probes": ["plus2"]}, read=read, model=tiny["llama"])
    with pytest.raises(UserError, match="unknown probe 'plus2'"):
        Generalisation.measure(setting)

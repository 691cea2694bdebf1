"""The chapter on specificity, on a random model: kept, against plain ablation, told and drawn."""

import dataclasses

import kept
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_tiny
from IPython.display import Markdown
from matplotlib.figure import Figure
from oracles import plainly
from tokenizers_made import tokenizer_of

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.analyses import specificity
from seqcirc_utils.chapters import doses, ranked_tasks
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.chapters.specificity import Specificity
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import CannotDo
from seqcirc_utils.figures import doses as dose_figures
from seqcirc_utils.figures import specificity as figures
from seqcirc_utils.methods.registry import scores
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import outside, sequences

TASKS = ["number_words", "months"]
PARAMETERS = {
    **{"tasks": TASKS, "templates": ["born"], "more_templates": ["lost"], "n_means": 4},
    **{"n_held": 3, "n_ranked": 4, "n_resampled": 20, "n_specific_random": 2},
    **{"share_ablated": 0.2, "share_kept": 0.4, "ranking": "EAP-IG inputs", "n_rank_steps": 2},
    "seed": 0,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    words = [" born in", " lost in", "The near the is are"]
    for template in ("born", "lost"):
        fillers = sequences.TEMPLATES[template].fillers
        words += [*fillers, *(f" {filler}" for filler in fillers)]
    words += [f" {member}" for task in TASKS for member in sequences.TASKS[task].members]
    words += [f" {noun}{s}" for noun in outside._NOUNS for s in ("", "s")]
    directory = save_tiny("llama", tmp_path_factory.mktemp("spec"), tokenizer_of(r"\d", words))
    return loading.load(str(directory), "cpu")


@pytest.fixture(scope="module")
def liked(model):
    """Prompts with the question turned round where a random model prefers the wrong answer."""
    drawn = ranked_tasks._drawn

    def draw(at, *args):
        sets = drawn(at, *args)
        means = record(model, sets.evaluation).activations.mean()
        wrong = Evaluator(model, sets.evaluation, means).intact.logit_diff < 0
        ids = torch.stack([sets.evaluation.answer_ids, sets.evaluation.last_ids])
        answer, last = torch.where(wrong, ids.flip(0), ids)
        asked = dataclasses.replace(sets.evaluation, answer_ids=answer, last_ids=last)
        return dataclasses.replace(sets, evaluation=asked)

    return draw


@pytest.fixture
def setting(model, liked, monkeypatch):
    monkeypatch.setattr(ranked_tasks, "_drawn", liked)
    return lambda **changes: Setting(PARAMETERS | changes, model=model)


@pytest.fixture(scope="module")
def found(model, liked, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranked_tasks, "_drawn", liked)
        measured = Specificity.measure(Setting(PARAMETERS, model=model))
    where = tmp_path_factory.mktemp("found")
    return kept.kept_and_read(measured, where)


def test_every_set_is_scored_on_every_task(found):
    tasks = found.tasks["task"].tolist()
    assert tasks == [*TASKS, "repeat", *outside.OUTSIDE] and not found.left_out
    for table, kinds in ((found.damage, {"circuit", "random", "part"}), (found.kept, {"circuit"})):
        assert set(table["kind"]) == kinds and not table.duplicated(["set", "kind", "task"]).any()
        assert (table.groupby(["set", "kind"]).size() == len(tasks)).all()
        assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    assert (found.n_ablated, found.n_kept, found.n_components) == (3, 6, 15)


def test_damage_and_what_is_kept_are_those_of_plain_passes(found, model, liked):
    """One cell of each matrix, from the scores' door and passes with hooks."""
    at = Setting(PARAMETERS, model=model)
    own, other = (
        liked(at, task, kind, 7, ["born"])
        for task, kind in (("months", "sequences"), ("ioi", "outside"))
    )
    values = scores(
        model,
        own.evaluation[range(3, 7)],
        own.corrupted[range(3, 7)],
        method="EAP-IG inputs",
        n_steps=2,
    ).values
    order = [components(model)[i] for i in np.argsort(-values, kind="stable")]
    judge, means = other.evaluation[range(3)], record(model, other.means).activations.mean()
    whole = plainly(model, judge, [], means).mean()
    lost = 1 - plainly(model, judge, order[:3], means).mean() / whole
    left = plainly(model, judge, order[6:], means).mean() / whole
    for table, expected in ((found.damage, lost), (found.kept, left)):
        row = table[(table["set"] == "months") & (table["task"] == "ioi")]
        row = row[row["kind"] == "circuit"]
        assert row["mean"].item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_index_is_own_minus_others(found):
    cells = found.damage[found.damage["kind"] == "circuit"].set_index(["set", "task"])["mean"]
    rows = found.index[(found.index["measure"] == "damage") & (found.index["kind"] == "circuit")]
    rows = rows.set_index(["set", "against"])["mean"]
    others = [cells["months", task] for task in outside.OUTSIDE]
    assert rows["months", "outside"] == pytest.approx(cells["months", "months"] - np.mean(others))
    pair = cells["months", "months"] - cells["months", "number_words"]
    assert rows["months", "sequences"] == pytest.approx(pair)
    both = rows[[(task, "repeat") for task in TASKS]].mean()
    assert rows["sequences", "repeat"] == pytest.approx(both)


def test_a_part_s_damage_is_the_mean_over_tasks_of_a_kind(found):
    cells = found.damage.set_index(["set", "kind", "task"])["mean"]
    kinds = found.tasks.set_index("task")["kind"]
    asked = found.damage[found.damage["set"].isin(["shared", *specificity.PARTS])]
    assert len(found.part_damage) == 3 * len(asked[["set", "kind"]].drop_duplicates()) > 3
    for name, kind, to, mean, low, high in found.part_damage.itertuples(index=False):
        of = cells[name, kind][kinds[cells[name, kind].index] == to]
        assert mean == pytest.approx(of.mean()) and low <= mean <= high
    assert (found.part_damage["high"] > found.part_damage["low"]).any()


def test_every_dose_is_on_the_sequences_and_the_chosen_one_on_all(found):
    tasks, numbers = found.tasks["task"].tolist(), doses.numbers(0.2, 12)
    assert numbers == [1, 2] and found.dose in numbers
    asked = found.dosed[found.dosed["kind"] == "circuit"].groupby("dose")
    on = asked["task"].agg(set).to_dict()
    assert on == {dose: set(tasks if dose == found.dose else TASKS) for dose in numbers}
    assert asked["set"].agg(set).to_dict() == dict.fromkeys(numbers, set(tasks))
    assert not found.dosed.duplicated(["dose", "set", "kind", "task"]).any()
    means = found.dose_choice.groupby("dose")["damage"].mean()
    assert found.dose == (means - 0.5).abs().idxmin()


def test_the_dose_is_chosen_by_plain_passes_on_the_prompts_that_rank(found, model, liked):
    at = Setting(PARAMETERS, model=model)
    sets = liked(at, "months", "sequences", 7, ["born"])
    asked, means = sets.evaluation[range(3, 7)], record(model, sets.means).activations.mean()
    pairs = asked, sets.corrupted[range(3, 7)]
    values = scores(model, *pairs, method="EAP-IG inputs", n_steps=2).values
    order = [components(model)[i] for i in np.argsort(-values, kind="stable")]
    heads = [c for c in order if c.head is not None]
    whole = plainly(model, asked, [], means).mean()
    rows = found.dose_choice.set_index(["task", "dose"])["damage"]
    for dose in (1, 2):
        lost = 1 - plainly(model, asked, heads[:dose], means).mean() / whole
        assert rows["months", dose] == pytest.approx(lost.item(), abs=1e-4)


def test_overlaps_and_nulls_are_all_there(found):
    kinds = found.overlap.groupby("kind").size().to_dict()
    assert kinds == {
        **{"halves": 2, "sentences": 2, "sequences": 1, "another sentence": 1, "repeat": 2},
        **{"outside": 6, "shuffled": 1, "shuffled weights": 1, "halves, shuffled weights": 2},
    }
    assert found.overlap["mean"].between(0, 1).all()
    assert (found.inclusion["share"] > 0).all()
    assert set(found.inclusion["verdict"]) <= {"in", "out", "uncertain"}
    shared = [Component.parse(name) for name in found.parts["component"]]
    assert sum(found.expected.values()) == pytest.approx(len(shared))


def test_what_cannot_be_done_is_left_out_in_one_line(setting, liked, monkeypatch):
    def turned(at, task, *args):
        sets = liked(at, task, *args)
        asked = sets.evaluation
        if task == "ioi":
            asked = dataclasses.replace(asked, answer_ids=asked.last_ids, last_ids=asked.answer_ids)
        return dataclasses.replace(sets, evaluation=asked)

    monkeypatch.setattr(ranked_tasks, "_drawn", turned)
    found = Specificity.measure(setting(more_templates=[], n_specific_random=0))
    assert list(found.left_out) == ["Indirect object"]
    assert all("\n" not in why for why in found.left_out.values())
    assert set(found.damage["kind"]) == {"circuit", "part"}
    assert "ioi" not in set(found.damage["task"]) and "sentences" not in set(found.overlap["kind"])
    with pytest.raises(CannotDo, match="Fewer than two sequence tasks"):
        Specificity.measure(setting(tasks=["months"]))


SENTENCES = (
    *(figures.headline, figures.left_out_told, figures.index_told, figures.parts_told),
    *(figures.overlap_told, figures.stability_told, dose_figures.told),
)
DRAWN = (
    *(figures.matrices, figures.index_dots, figures.parts_bars, figures.overlap_dots),
    *(figures.inclusion_bars, dose_figures.curves, dose_figures.matrix),
)


def test_it_is_told_and_drawn(found):
    assert all(isinstance(tell(found), Markdown) and tell(found).data for tell in SENTENCES)
    assert all(isinstance(draw(found), Figure) for draw in DRAWN)
    assert figures.tasks_table(found).index.tolist()[-1] == "Agreement"
    none = dataclasses.replace(found, parts=found.parts[:0], missing={"parts": "no outside task."})
    assert "no outside task" in figures.parts_told(none).data
    assert "*Lost by a sequence without" in figures.headline(none).data
    assert isinstance(figures.parts_bars(none), Markdown)
    names = ("dosed", "dose_choice", "dose_index", "dose_heads")
    tables = {name: getattr(found, name)[:0] for name in names}
    none = dataclasses.replace(none, **tables, dose=0, missing={"doses": "nothing to lose."})
    for show in (dose_figures.told, dose_figures.curves, dose_figures.matrix):
        assert "nothing to lose" in show(none).data
    assert "*Lost by a sequence without" not in figures.headline(none).data
    assert figures.numbers(none)["specificity-dose-outside"] == "none"
    assert figures.numbers(none)["specificity-shared"] == "0"


def test_the_sentence_follows_from_the_numbers(found):
    """The same words for other numbers would be a conclusion that was written before."""

    def told(low, high):
        rows = found.index.assign(mean=(low + high) / 2, low=low, high=high)
        return figures.headline(dataclasses.replace(found, index=rows)).data

    for low, high, says in (
        *((0.1, 0.3, "more than of"), (-0.3, -0.1, "less than of")),
        (-0.1, 0.3, "no clear difference from"),
    ):
        between = f"({50 * (low + high):.0f} points [{100 * low:.0f}, {100 * high:.0f}])"
        of = (
            f"{says} the other sequences {between}, repeating in the same sentences {between} and "
            f"outside tasks {between}"
        )
        said = told(low, high)
        assert f"strongest components*: {of}; random heads" in said
        assert f"circuit alone*: {of}." in said
    for low, high, verdict in (
        *((0.1, 0.3, "matter more"), (-0.3, -0.1, "matter less"), (-0.1, 0.3, "undecided")),
    ):
        rows = found.dose_index.assign(mean=(low + high) / 2, low=low, high=high)
        made = dataclasses.replace(found, dose_index=rows)
        between = f"points [{100 * low:.0f}, {100 * high:.0f}], "
        apart = found.dose_heads.assign(head=found.dose_heads["task"])  # none is another's
        made = dataclasses.replace(made, dose_heads=apart)
        told_there = dose_figures.told(made).data.split("The same heads on other tasks")[0]
        assert told_there.count(between) == told_there.count(verdict) == 7  # kinds, tasks, random
        (said,) = [x for x in figures.headline(made).data.splitlines() if "*Lost by" in x]
        assert said.count(verdict) == 1 and said.count(between[:-2]) == 6  # all are told together
        assert figures.numbers(made)["specificity-dose-outside"] in told_there
    places = found.dose_heads["place"].map(str)
    alike = dataclasses.replace(made, dose_heads=found.dose_heads.assign(head="0." + places))
    (said,) = [x for x in figures.headline(alike).data.splitlines() if "*Lost by" in x]
    assert ": the same heads: the other sequences (" in said  # all six of them, told together
    assert said.count("the same heads:") == 1 and said.count(between[:-2]) == 6
    assert "undecided" not in said and "matter" not in said
    assert (
        f"the same heads ({found.dose} of {found.dose} in common)" in dose_figures.told(alike).data
    )
    choice = found.dose_choice
    for share, words in ((0.81, "(nearest to half: 81% on"), (0.49, "(nearest to half: 49% on")):
        made = dataclasses.replace(found, dose_choice=choice.assign(damage=share))
        assert words in figures.headline(made).data
        assert ("though not near it" in dose_figures.told(made).data) == (share == 0.81)
    parts = pd.DataFrame(
        {"component": ["0.1", "1.2", "mlp0"], "part": ["general"] * 2 + ["sequence"]}
    )
    said = figures.headline(dataclasses.replace(found, parts=parts)).data
    assert "Of the 3 components that the sequence circuits share, 2 are" in said
    assert "same sentences, and 1 in neither" in said

"""The chapter on planted circuits: what is known is found again, kept, drawn and told."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from seqcirc_utils.chapters.ground_truth import GroundTruth, listed, parsed
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component
from seqcirc_utils.figures import ground_truth as figures
from seqcirc_utils.planted.circuits import PLANTED

pytestmark = pytest.mark.slow  # six models are built and searched
PARAMETERS = {"tasks": ["months"], "templates": ["born"], "n_prompts": 2, "n_means": 16}
PARAMETERS |= {"threshold": 0.8, "n_random": 2, "seed": 0}


@pytest.fixture(scope="module")
def found():
    return GroundTruth.measure(Setting(PARAMETERS))


def test_searches_end_where_it_is_known_and_rightness_is_told(found):
    rows = found.searches.set_index(["planted", "search"])
    assert len(rows) == 3 * len(PLANTED)
    for name, known in PLANTED.items():
        swept, ranked = rows.loc[(name, "published sweep")], rows.loc[(name, "ranked")]
        assert parsed(swept["components"]) == known.swept
        assert swept["right"] == (known.swept in known.smallest)
        assert parsed(ranked["components"]) in known.smallest and ranked["right"]
    assert rows.loc[("negative", "published sweep"), "score"] == pytest.approx(4 / 3, abs=1e-4)
    assert found.one_sided == {"components": listed(PLANTED["negative"].swept), "right": False}
    assert parsed(found.zeroed) == PLANTED["signpost"].circuit
    stand_ins = {name: parsed(text) for name, text in found.stand_ins.items()}
    assert stand_ins == {name: known.stand_ins for name, known in PLANTED.items()}


def test_what_is_left_is_what_was_planted(found):
    alone = found.alone.set_index(["planted", "component"])["share"]
    joint = found.joint.set_index(["planted", "first", "second"])["share"]
    assert alone["negative", "2.2"] == pytest.approx(2, abs=1e-4)
    assert joint["negative", "2.2", "2.2"] == pytest.approx(2, abs=1e-4)
    assert alone["pair", "1.0"] == pytest.approx(1, abs=1e-4)
    assert joint["pair", "1.0", "1.2"] == pytest.approx(0, abs=1e-4)
    orders = found.orders.groupby("planted")["order"].apply(list)
    assert orders.to_dict() == dict.fromkeys(PLANTED, [0, 1])


def test_methods_are_held_to_what_was_planted(found):
    rows = found.methods.set_index(["planted", "method"])
    assert len(rows) == 11 * len(PLANTED) and rows["auroc"].dropna().between(0, 1).all()
    for name in ("path", "negative"):  # the head against the answer counts by its size
        assert rows.loc[(name, "exact ablation"), "auroc"] == 1
        assert rows.loc[(name, "exact ablation"), "recovered"]
    assert not rows.loc[("pair", "exact ablation"), "recovered"]  # one at a time misses neither
    assert rows.loc[("pair", "ranked search"), "recovered"]
    shown = figures.methods_table(found).to_html()
    assert "ranked search" in shown and "Negative head" in shown and "✓" in shown
    assert "redundant pair" in figures.methods_told(found).data


def test_components_are_listed_in_order_and_read_back():
    names = {Component(1, 2), Component(0, None), Component(0, 2), Component(1, None)}
    assert listed(names) == "0.2 mlp0 1.2 mlp1" and parsed(listed(names)) == names
    assert listed([]) == "none" and parsed("none") == set()


def test_findings_come_back_as_they_were(found, tmp_path):
    found.save(tmp_path)
    again = GroundTruth.load(tmp_path)
    for field in dataclasses.fields(found):
        ours, theirs = getattr(found, field.name), getattr(again, field.name)
        if isinstance(ours, pd.DataFrame):
            assert np.array_equal(ours.to_numpy(object), theirs.to_numpy(object))
        else:
            assert ours == theirs


def test_figures_draw_and_sentences_tell(found, tmp_path):
    found.save(tmp_path)
    found = GroundTruth.load(tmp_path)
    draws = (figures.kept_panels, figures.joint_maps, lambda _: figures.anatomy())
    assert all(isinstance(draw(found), Figure) for draw in draws)
    assert "by 0.0% at most" in figures.alone_told(found).data
    said = figures.searches_told(found).data
    assert "right about **3**" in said and "ranked search about **6**" in said
    assert f"*Uneven writers*: {PLANTED['uneven'].verdict}. *Negative" in said
    assert "*One path*" not in said and "the rule is to blame" in said
    assert len(figures.models_table().data) == len(PLANTED)
    table = figures.search_table(found).data
    assert table.loc["Negative head", "published sweep"] == "✗ 0.2 mlp0 1.2 mlp1 (133%)"
    assert table.loc["One path"].iloc[-1] == "2 of 2 ✓, 1 circuit"


def test_verdicts_are_those_of_the_published_threshold_only(found):
    other = dataclasses.replace(found, threshold=0.9)
    assert PLANTED["uneven"].verdict not in figures.searches_told(other).data


def test_what_is_still_missing_is_told_of_the_models_that_lack_it(found):
    """With other thresholds the signpost was called the exception, whatever was missing."""
    table = figures.completion_table(found).data["still missing"]
    assert table[table != "none"].to_dict() == {"signpost": "0.1"}
    said = figures.completion_told(found).data
    assert "5 of 6 models" in said and "The exception is head 0.1 of the signpost: it" in said
    less = dataclasses.replace(
        found, alone=found.alone.copy(), stand_ins=found.stand_ins | {"detour": "1.2"}
    )
    less.alone.loc[less.alone["planted"] == "detour", "share"] = 1.0
    said = figures.completion_told(less).data
    assert "4 of 6 models" in said and "The exception" not in said
    assert "Missing: Short and long way (2.1), Signpost (0.1). Head 0.1 of the signpost" in said


def test_the_map_names_every_component():
    model = PLANTED["signpost"]
    figure = figures.planted_map(model.kinds, model.roles, [(Component(0, 2), Component(0, None))])
    said = {text.get_text().split("\n")[0] for text in figure.axes[0].texts}
    assert {str(c) for c in model.parts} <= said
    assert "mean ablation cannot see" in figure.legends[0].get_texts()[1].get_text()


def test_panels_mark_what_each_search_kept():
    kinds = {model.title: model.kinds for model in PLANTED.values()}
    kept = {
        "sweep": {model.title: model.swept for model in PLANTED.values()},
        "ranked": {model.title: model.smallest[0] for model in PLANTED.values()},
    }
    figure = figures.search_panels(kinds, kept)
    for axis, model in zip(figure.axes, PLANTED.values(), strict=True):
        assert model.title in (axis.get_title(), axis.get_title(loc="left"))  # the style decides
        drawn = [len(marks.get_offsets()) for marks in axis.collections]
        assert drawn == [len(model.swept), len(model.smallest[0])]


def test_joint_ablation_prints_percentages():
    table = pd.DataFrame([[1.0, 0.0], [0.0, 2.0]], index=["1.0", "1.1"], columns=["1.0", "1.1"])
    figure = figures.joint_ablation({"pair": table}, "% left")
    assert [text.get_text() for text in figure.axes[0].texts] == ["100", "0", "0", "200"]

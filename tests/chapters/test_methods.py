"""Methods side by side as a chapter: on a planted circuit, against chapters 03 and 04, refused."""

import dataclasses
from types import SimpleNamespace

import kept
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.chapters.methods import Methods
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits.search import ranked, sweep
from seqcirc_utils.components import components
from seqcirc_utils.errors import UserError
from seqcirc_utils.figures import methods as figures
from seqcirc_utils.methods import mib_format
from seqcirc_utils.methods.registry import METHODS
from seqcirc_utils.methods.whole_graph import sizes_of
from seqcirc_utils.planted.circuits import PLANTED

PARAMETERS = {"model": "m", "task": "months", "templates": ["born"], "seed": 0, "threshold": 0.8}
NUMBERS = {"n_prompts": 4, "n_means": 16, "n_scored": 2, "n_judged": 2, "n_steps": 3}
ALL = "cpr cmd size share".split()


def setting(model, more=(), wrong=1.0, known_on=4):
    """A run in which chapters 03 and 04 found what their engines say."""

    def patching():
        sets, everything = at.sets(), [[c] for c in components(model)]
        ablating = Evaluator(model, sets.evaluation, at.means())
        own = record(model, sets.evaluation).activations
        restoring = Evaluator(model, sets.corrupted, own, answers=sets.evaluation)
        found = {}
        for name, evaluator in (("ablation", ablating), ("patching", restoring)):
            change = evaluator.replaced(everything).logit_diff - evaluator.intact.logit_diff
            found[name] = (change / ablating.intact.logit_diff.mean()).numpy()
        found["ablation"][3] *= wrong
        found["ablation"][5, known_on:] = np.nan
        return SimpleNamespace(**found)

    def discovery():
        evaluator = Evaluator(model, at.sets().discovery, at.means())
        steps = []
        for name, way in (("published sweep", sweep), ("ranked search", ranked)):
            steps += [{"search": name} | step for step in way(evaluator, at["threshold"]).steps]
        return SimpleNamespace(
            steps=pd.DataFrame(steps),
            n_searched=len(evaluator.prompts),
            cpu_seconds={"published sweep": 2.0, "ranked search": 1.0},
        )

    def read(kind, task=None):
        return {"03_patching": patching, "04_circuit_discovery": discovery}[kind.stage]()

    at = Setting(PARAMETERS | NUMBERS | dict(more), None, read, model)
    return at


@pytest.fixture(scope="module")
def found():
    """A model with a path of four parts (whose edges are refused)."""
    return Methods.measure(setting(PLANTED["path"].build("months")))


@pytest.fixture(scope="module")
def random(tiny):
    """A random model, asked for what it says anyway."""
    at = setting(tiny["llama"])
    at._sets["months"] = sets_with_a_lead(tiny["llama"], at)
    return Methods.measure(at)


def test_every_method_but_random_finds_the_path(found):
    rows = found.methods.set_index("method")
    assert set(rows.index) | set(found.missing) >= set(METHODS) and not set(found.missing) & set(
        ["exact ablation", "attribution patching", "published sweep"]
    )
    known = {str(c) for c in PLANTED["path"].smallest[0]}
    for name in ("exact ablation", "activation patching", "published sweep", "ranked search"):
        ranking = found.scores.set_index("component")[name].abs()
        if name != "activation patching":  # one part restored alone restores nothing, but the last
            assert set(ranking.nlargest(4).index) == known, name
    for name in ("exact ablation", "published sweep", "ranked search"):
        assert rows.loc[name, "size"] == 4 and rows.loc[name, "share"] > 0.99
        assert rows.loc[name, "cpr"] > rows.loc["random", "cpr"]
        assert rows.loc[name, "cmd"] < rows.loc["random", "cmd"]
    assert rows.loc["random", "size"] > 4
    assert rows.loc["exact ablation", "spearman_heads"] == pytest.approx(1)
    assert (rows[[f"{k}_low" for k in ALL]].to_numpy() <= rows[ALL].to_numpy() + 1e-9).all()
    assert (rows[[f"{k}_high" for k in ALL]].to_numpy() >= rows[ALL].to_numpy() - 1e-9).all()


def test_costs_are_those_of_a_plain_program(found):
    passes = found.methods.set_index("method")["passes"]
    assert passes["random"] == 0 and passes["attribution patching"] == 2 * 4
    assert passes["exact ablation"] == 2 * 13 and passes["EAP-IG inputs"] == 2 * (2 + 3 * 3)
    assert min(passes["published sweep"], passes["ranked search"]) > 4 * 12
    timed = found.methods.set_index("method")["timed"]
    assert not timed["exact ablation"] and timed["RelP" if "RelP" in timed else "random"]


def test_the_grid_ends_in_the_whole_model(found):
    ends = found.grid[found.grid["size"] == 12]
    np.testing.assert_allclose(ends["faithfulness"], 1, atol=1e-4)
    assert len(found.grid) == 10 * 2 * 2 * len(found.methods)
    assert ends["edges"].eq(len(mib_format.Sizes(3, 3, 1).edges())).all()


def test_the_strongest_edges_are_run(random, found):
    assert random.missing == {} and len(random.edges) >= 12
    assert random.edge_patching.shape == random.edge_ig.shape == (16, 40)
    strongest = np.nanmax(np.abs(random.edge_patching))
    assert random.edges["patching"].abs().max() == pytest.approx(strongest, rel=1e-5)
    assert random.edges["exact"].abs().max() > 1e-3
    assert "edges do not apply" in found.missing["edges"]


def test_findings_come_back_and_are_shown(random, tmp_path):
    found = random
    again = kept.kept_and_read(found, tmp_path, index=True, dtypes=True, nan=True)
    for draw in (figures.quality_against_cost, figures.curves):
        assert isinstance(draw(again), Figure)
    for draw in (figures.quality_table, figures.agreement_table, figures.edge_table):
        assert "<table" in draw(again).to_html()
    assert (
        "Cost" not in figures.told(again).data and figures.best(again) in figures.told(again).data
    )
    assert "edges, those of the embedding included" in figures.edges_told(again).data
    assert "Hanna" in figures.methods_table().data
    edges = figures.edge_table(found)
    inputs = edges.data.index.str.extract("(<[qkv]>)$")[0].dropna()
    assert len(inputs) and edges.to_html().count("&lt;") == len(inputs)
    assert "<q>" not in edges.to_html() and "<v>" not in edges.to_html()


def test_scores_are_handed_to_the_benchmark(random, tiny, tmp_path):
    sizes = sizes_of(tiny["llama"])
    for method in ("attribution patching", "exact ablation"):
        path = mib_format.save(random.exported(method, sizes), tmp_path / "importances.json")
        back = mib_format.load(path)
        np.testing.assert_allclose(back.nodes[1:], random.scores[method])
        assert (np.nansum(np.abs(back.edges)) > 0) == (method == "attribution patching")


def test_a_method_that_does_not_apply_is_missing_and_all_else_goes_on(tiny, sets):
    """Gemma 2 caps its logits and norms what it adds: no relevance rules, and no edges."""
    model = tiny["gemma2"]
    at = setting(model)
    at._sets["months"] = sets_with_a_lead(model, at)
    found = Methods.measure(at)
    assert "caps its logits" in found.missing["RelP"]
    assert "edges do not apply" in found.missing["edges"]
    assert set(found.methods["method"]) == set(METHODS) - {"RelP"}
    assert "caps its logits" in figures.quality_table(found).to_html()
    assert "edges do not apply" in figures.edge_table(found).data
    assert isinstance(figures.quality_against_cost(found), Figure)


def sets_with_a_lead(model, at):
    """Prompt sets whose answers the random model prefers, more so than on corrupted prompts."""
    sets, found = at.sets(), {}
    other = model.bridge(sets.corrupted.tokens)[:, -1].detach()
    for name in ("evaluation", "discovery"):
        prompts = getattr(sets, name)
        whole = model.bridge(prompts.tokens)[:, -1].detach()
        answers = (whole - other).argmax(-1)
        below = whole < whole.gather(-1, answers[:, None])
        lasts = other.masked_fill(~below, -1e9).argmax(-1)
        found[name] = dataclasses.replace(prompts, answer_ids=answers, last_ids=lasts)
    return dataclasses.replace(sets, **found)


def test_too_few_prompts_to_judge_on_are_refused():
    with pytest.raises(UserError, match="n_scored is 4 of 4 prompts"):
        Methods.measure(setting(PLANTED["path"].build("months"), {"n_scored": 4}))
    with pytest.raises(UserError, match=r"n_scored is 2 of 2 prompts \(n_exact of chapter 03\)"):
        Methods.measure(setting(PLANTED["path"].build("months"), known_on=2))
    few = Methods.measure(setting(PLANTED["path"].build("months"), known_on=3))
    assert few.n_judged == 1  # of the two that were asked for


def test_effects_of_other_prompts_are_found_out():
    with pytest.raises(AssertionError, match="is not chapter 03's"):
        Methods.measure(setting(PLANTED["path"].build("months"), wrong=9.0))

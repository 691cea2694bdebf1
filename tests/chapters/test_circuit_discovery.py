"""What chapter 04 finds in a model whose circuit is known, and how it is shown."""

import dataclasses
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.figure import Figure
from oracles import evaluator_of

from seqcirc_utils import store
from seqcirc_utils.ablation.edges import EdgeEvaluator
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.chapters import circuit_discovery
from seqcirc_utils.chapters.circuit_discovery import CircuitDiscovery
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.circuits import chance, released
from seqcirc_utils.components import Component, Edge, components
from seqcirc_utils.figures import circuit_discovery as figures
from seqcirc_utils.planted.circuits import PLANTED

NUMBERS = {"n_prompts": 4, "n_means": 16, "n_null": 5, "n_repeats": 1, "n_edge_prompts": 2}
NUMBERS |= {"n_calls": 3, "n_senders": 2, "n_discovery": 64}
PARAMETERS = {"model": "m", "task": "months", "templates": ["born"], "seed": 0}
DRAWN = [figures.search_paths, figures.estimate_scatter, figures.circuit_map, figures.size_curve]
DRAWN += [figures.needed_and_found, figures.ablation_map]
TOLD = [figures.searches_told, figures.estimate_told, figures.chance_told, figures.needed_told]
TOLD += [figures.calls_told]
OF_EDGES = [figures.edge_table, figures.fault_table, figures.strongest_edges]
SHOWN = [*OF_EDGES, figures.calls_table]


def setting(model, checkpoints=None, threshold=0.8):
    """A run of the chapter in which chapter 03 found the exact effects."""

    def read(kind, task=None):
        assert kind.stage == "03_patching"
        evaluator = Evaluator(at.model, at.sets().evaluation, at.means())
        changes = evaluator.replaced([[c] for c in components(at.model)]).logit_diff
        changes = (changes.mean(1) - (whole := evaluator.intact.logit_diff.mean())) / whole
        names = list(map(str, components(at.model)))
        return SimpleNamespace(
            effects=pd.DataFrame({"component": names, "ablation": changes.tolist()})
        )

    at = Setting(PARAMETERS | NUMBERS | {"threshold": threshold}, checkpoints, read, model)
    return at


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def planted(directory):
    """Findings on a model that adds a path of four parts, and whose edges are refused."""
    at = setting(PLANTED["path"].build("months"), directory / CircuitDiscovery.stage)
    return CircuitDiscovery.measure(at)


@pytest.fixture(scope="module")
def gpt2_asked(gpt2):
    """A run of a random model, asked for what its components raise."""
    at = setting(gpt2, threshold=0.3)
    sets, means = at.sets(), at.means()
    answered = {
        name: evaluator_of(gpt2, getattr(sets, name), means).answers
        for name in ("discovery", "evaluation")
    }
    at._sets["months"] = dataclasses.replace(sets, **answered)
    return at


@pytest.fixture(scope="module")
def found(gpt2_asked):
    with pytest.MonkeyPatch.context() as patch:  # sizes above the circuit's, in so small a model
        patch.setattr(circuit_discovery, "SIZES", (0.2, 0.8, 0.9))
        return CircuitDiscovery.measure(gpt2_asked)


def test_the_planted_circuit_is_found_and_judged(planted):
    known = set(PLANTED["path"].smallest[0])
    assert planted.circuit.components == planted.published.components == known
    assert set(planted.components["component"]) == set(map(str, known))
    assert planted.scores["ranked search"] == pytest.approx(1, abs=0.05)
    assert planted.accuracy == 1
    assert planted.components["inclusion"].eq(1).all() and planted.returning == []
    assert (planted.components["change"] < -0.5).all()  # each part needs the one before
    own = planted.quality["ranked search"]["faithfulness"]["mean"]
    assert max(map(max, planted.random.values())) < own == planted.circuit.faithfulness["mean"]
    assert planted.p == {"random, same size": 1 / 2, "random heads, same layers": 1 / 6}
    ends = planted.curve["faithfulness"].iloc[[0, -1]].tolist()
    assert ends == pytest.approx([0, 1], abs=1e-3)
    exact = planted.estimates.set_index("component")["exact"]
    assert (exact[list(map(str, known))] < -0.5).all() and planted.recall == 1


def test_the_curve_follows_the_search_and_random_circuits_are_shares(found, gpt2_asked):
    at, everything = gpt2_asked, components(gpt2_asked.model)
    evaluator = Evaluator(at.model, at.sets().evaluation, at.means())
    whole = evaluator.intact.logit_diff.mean()

    def share(kept):
        return (evaluator.kept([kept]).logit_diff.mean() / whole).item()

    steps = found.steps[(found.steps["search"] == "ranked search") & found.steps["removed"]]
    gone = [Component.parse(c) for names in steps["component"] for c in names.split()]
    needed = [Component.parse(c) for c in found.components["component"]]
    assert found.curve["size"].between(len(needed) + 1, len(everything) - 1).any()
    for size, score in found.curve.itertuples(index=False):
        first_out = set(gone[: len(everything) - size])
        kept = needed[:size] if size <= len(needed) else set(everything) - first_out
        assert score == pytest.approx(share(kept), abs=1e-5)
    drawn = chance.random_like(needed, everything, 5, 0, by_layer=True)
    expected = pytest.approx([share(kept) for kept in drawn], abs=1e-5)
    assert found.random["random heads, same layers"] == expected
    judged = {name: share(c.components) for name, c in figures.circuits(found).items()}
    assert judged == pytest.approx({n: s["faithfulness"]["mean"] for n, s in found.quality.items()})
    edges = EdgeEvaluator(evaluator, needed).differences([map(Edge.parse, found.circuit.edges)])
    unseen = (edges.mean() / evaluator.intact.logit_diff.mean()).item()
    assert found.edge_scores["ranked search"]["evaluation"] == pytest.approx(unseen, abs=1e-5)


def test_random_circuits_are_scored_on_the_first_prompts(found, gpt2_asked, monkeypatch):
    at, ours = gpt2_asked, found.circuit.components
    judging = Evaluator(at.model, at.sets().evaluation, at.means())
    search = SimpleNamespace(components=ours, steps=[])
    drawn = chance.random_like(ours, components(at.model), 5, 0, by_layer=True)

    def compared(judging):
        return circuit_discovery._compared(at, judging, found.components, search)

    def shares(judging):
        whole = judging.intact.logit_diff.mean().item()
        scores = judging.kept([ours, *drawn]).logit_diff.mean(1) / whole
        return pytest.approx(scores.tolist(), abs=1e-5)

    assert found.n_random == 4  # all there are
    monkeypatch.setattr(circuit_discovery, "RANDOM_PROMPTS", 2)
    few = compared(judging)
    layered = few["random"]["random heads, same layers"]
    assert [few["beside_random"], *layered] == shares(judging.with_(rows=[0, 1]))
    assert few["n_random"] == 2
    as_good = sum(score >= few["beside_random"] for score in layered)
    assert few["p"]["random heads, same layers"] == (1 + as_good) / 6
    told = figures.chance_told(dataclasses.replace(found, **few)).data
    assert "on the first 2 of 4 prompts" in told
    assert "of 4 prompts" not in figures.chance_told(found).data

    # The first prompt's answer is below its last member: a share of that means nothing.
    own = judging.answers
    ids = {"answer_ids": own.answer_ids.clone(), "last_ids": own.last_ids.clone()}
    ids["answer_ids"][:1], ids["last_ids"][:1] = own.last_ids[:1], own.answer_ids[:1]
    wrong = judging.with_(answers=dataclasses.replace(own, **ids))
    monkeypatch.setattr(circuit_discovery, "RANDOM_PROMPTS", 1)
    assert wrong.intact.logit_diff.mean() > 0 > wrong.intact.logit_diff[0], "choose other prompts"
    every = compared(wrong)
    layered = every["random"]["random heads, same layers"]
    assert every["n_random"] == 4 and [every["beside_random"], *layered] == shares(wrong)


def test_each_search_gives_its_circuit_the_first_of_the_repeated_ones_too(planted):
    known = set(PLANTED["path"].smallest[0])
    assert planted.repeats["kind"].tolist() == ["prompts", "seed", "order"]
    assert list(planted.by_search) == [
        *("ranked search", "ranked, two-sided", "published sweep"),
        *("ranked search, other prompts", "published rule, random order"),
    ]
    assert all(circuit == known for circuit in planted.by_search.values())
    none = dataclasses.replace(planted, repeats=planted.repeats[:0])
    assert list(none.by_search) == list(planted.by_search)[:3]


def test_searches_see_the_first_discovery_prompts_and_judges_see_all(gpt2_asked):
    few = setting(gpt2_asked.model, threshold=0.3)
    few._sets, few.parameters = gpt2_asked._sets, few.parameters | {"n_discovery": 3}
    found, sets = CircuitDiscovery.measure(few), few.sets()
    seen = {name: sets.discovery[range(3)] for name in figures.circuits(found)}
    seen["ranked, two-sided"] = sets.discovery[range(2)]
    assert found.n_searched == 3 and "On 3 prompts" in figures.searches_told(found).data
    for name, circuit in figures.circuits(found).items():
        judged = found.quality[name]["faithfulness"]["mean"]
        for prompts, score in ((seen[name], found.scores[name]), (sets.evaluation, judged)):
            evaluator = Evaluator(few.model, prompts, few.means())
            kept = evaluator.kept([circuit.components]).logit_diff.mean()
            whole = evaluator.intact.logit_diff.mean()
            assert score == pytest.approx((kept / whole).item(), rel=1e-4)
    few.parameters["n_discovery"] = 99
    assert few.searched(sets.discovery).texts == sets.discovery.texts


def test_every_trial_is_kept_in_the_log_and_in_the_findings(planted, directory):
    for name, suffix in (("published sweep", "sweep"), ("ranked search", "ranked")):
        log = store.read_json(directory / f"04_circuit_discovery.{suffix}.json")["steps"]
        steps = planted.steps[planted.steps["search"] == name]
        assert [step["component"] for step in log] == steps["component"].tolist()
        assert len(log) == planted.trials[name]
        assert steps["score"][steps["removed"]].iloc[-1] == planted.scores[name]


def test_a_model_without_edges_loses_their_section_only(planted, tmp_path):
    planted.save(tmp_path)
    back = CircuitDiscovery.load(tmp_path)
    assert "edge circuits do not apply" in back.missing["edges"] and back.circuit.edges == []
    assert back.edge_effects.empty and back.faults.empty and back.edges == {}
    assert all(show(back).data.startswith("Not here: ") for show in OF_EDGES)
    assert all(isinstance(draw(back), Figure) for draw in DRAWN)


def test_the_kept_edges_keep_the_score(found):
    assert not found.missing
    assert len(found.circuit.edges) == found.edges["ranked search"] < len(found.edge_effects)
    kept = found.edge_scores["ranked search"]["discovery"]
    assert kept >= min(0.3, found.all_edges)
    cost = found.edge_effects.set_index("edge")["score"] - found.all_edges
    assert set(found.circuit.edges) <= set(cost.index)
    mlps = [c for c in found.components["component"] if c.startswith("mlp")][:2]
    into_logits = cost.index.isin([f"{name}->logits" for name in mlps])
    faults = found.faults.set_index("edges")
    assert faults.loc["MLP into logits (B13)", "candidates"] == into_logits.sum() > 0
    assert (faults["judged differently"] <= faults["candidates"]).all()


def test_the_sweep_is_scored_as_released_too(found, gpt2_asked):
    assert len(found.calls) == 4 and found.calls["component"].iloc[-1] == ""
    assert found.calls["meant"].iloc[-1] == found.scores["published sweep"]
    at = gpt2_asked
    steps = found.steps[found.steps["search"] == "published sweep"].to_dict("records")
    finding = Evaluator(at.model, at.sets().discovery, at.means())
    corrupted = record(at.model, at.sets().means)
    expected = released.closest_calls(finding, corrupted, steps, at["threshold"], at["n_calls"])
    pd.testing.assert_frame_equal(found.calls, expected)


def test_findings_survive_the_disk_and_are_shown_from_there(found, tmp_path):
    found.save(tmp_path)
    back = CircuitDiscovery.load(tmp_path)
    for field in dataclasses.fields(found):
        ours, theirs = getattr(found, field.name), getattr(back, field.name)
        if isinstance(ours, pd.DataFrame):
            pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, rtol=1e-6)
        else:
            assert ours == theirs, field.name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(isinstance(draw(back), Figure) for draw in DRAWN)
    told = " ".join(tell(back).data for tell in TOLD)
    assert "**0 of " in told and "4 prompts no test can give less than p = 0.062" in told
    assert "nan" not in told and "The best of " in told
    edges = figures.edge_table(back)
    assert edges.loc["kept together, discovery prompts", "all edges"] == f"{back.all_edges:.0%}"
    assert all(isinstance(show(back), pd.DataFrame) for show in SHOWN)
    table = figures.search_table(back)
    assert list(table) == ["published sweep", "ranked search", "ranked, two-sided"]
    size = f"{len(back.circuit.heads)}, {len(back.circuit.mlps)}"
    assert table.loc["heads, MLPs", "ranked search"] == size
    assert ", ".join(figures.numbers(back).values()) == size

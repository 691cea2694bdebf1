"""How circuits are judged, on tiny models where the answer can be computed plainly."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import evaluator_of, plain_logits, plainly
from scipy.stats import t

from seqcirc_utils.ablation import replay
from seqcirc_utils.circuits import quality
from seqcirc_utils.circuits import search as search_module
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError


@pytest.fixture(scope="module")
def judge(gpt2, sets, means):
    return evaluator_of(gpt2, sets.evaluation, means["gpt2"])


CIRCUIT = [Component(0, 0), Component(0, None), Component(1, 2), Component(2, None)]


def plain_kl_and_accuracy(logits, whole, prompts):
    """Divergence from the whole model (nats), and the share of answers on top."""
    kl = torch.nn.functional.kl_div(
        logits.log_softmax(-1), whole.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    return kl.item(), (logits.argmax(-1) == prompts.answer_ids).float().mean().item()


def test_quality_is_what_plain_passes_say(gpt2, judge, means):
    found = quality.quality(judge, CIRCUIT)
    whole = plainly(gpt2, judge.prompts, [], means["gpt2"])
    rest = [c for c in components(gpt2) if c not in CIRCUIT]
    kept = plainly(gpt2, judge.prompts, rest, means["gpt2"])
    left = plainly(gpt2, judge.prompts, CIRCUIT, means["gpt2"])
    base = whole.mean()
    assert found["faithfulness"]["mean"] == pytest.approx((kept.mean() / base).item(), abs=1e-4)
    assert found["completeness"]["mean"] == pytest.approx((left.mean() / base).item(), abs=1e-4)
    shares = kept / base - whole * (kept.mean() / base**2)  # to first order, a prompt for a start
    half = t.isf(0.025, 5) * shares.std().item() / 6**0.5
    by_start = found["by_start"]
    assert by_start["mean"] == found["faithfulness"]["mean"]
    assert by_start["high"] - by_start["low"] == pytest.approx(2 * half, rel=1e-3)
    one = dataclasses.replace(judge.prompts, starts=[3] * 6)
    assert "by_start" not in quality.quality(evaluator_of(gpt2, one, means["gpt2"]), CIRCUIT)
    distance = ((kept - whole).abs().mean() / base).item()
    assert found["distance"]["mean"] == pytest.approx(distance, abs=1e-4)
    logits = [plain_logits(gpt2, judge.prompts, names, means["gpt2"]) for names in (rest, [])]
    kl, correct = plain_kl_and_accuracy(*logits, judge.prompts)
    assert found["kl"]["mean"] == pytest.approx(kl, abs=1e-4) and kl > 0.01
    assert found["accuracy"]["mean"] == pytest.approx(correct)
    assert found == quality.quality(judge, CIRCUIT, 0)  # numbers of the book hang on this seed
    assert found["distance"] != quality.quality(judge, CIRCUIT, 1)["distance"]
    everything = quality.quality(judge, components(gpt2))
    # What leaves everything keeps exactly all, whichever prompts are drawn: no interval is left.
    assert list(everything["faithfulness"].values()) == pytest.approx([1, 1, 1], abs=1e-5)
    assert everything["distance"]["mean"] == pytest.approx(0, abs=1e-5)


def test_a_model_that_cannot_do_the_task_is_refused():
    evaluator = SimpleNamespace(intact=SimpleNamespace(logit_diff=torch.zeros(3)))
    with pytest.raises(UserError, match="logit difference"):
        quality.quality(evaluator, CIRCUIT)


def test_minimality_removes_each_component_from_the_circuit(judge):
    found = quality.minimality(judge, CIRCUIT).set_index("component")
    whole = judge.intact.logit_diff.mean()
    full = judge.kept([CIRCUIT]).logit_diff.mean()
    for component in CIRCUIT:
        without = judge.kept([set(CIRCUIT) - {component}]).logit_diff.mean()
        change = ((without - full) / whole).item()
        assert found.loc[str(component), "change"] == pytest.approx(change, abs=1e-4)
    assert (found["q"] >= found["p"]).all() and found["change"].is_monotonic_increasing
    with pytest.raises(UserError, match="empty"):
        quality.minimality(judge, [])


def test_a_component_that_does_nothing_has_p_one(gpt2, judge):
    own = replay.record(gpt2, judge.prompts).activations  # replaced by itself: nothing changes
    idle = evaluator_of(gpt2, judge.prompts, own)
    assert (quality.minimality(idle, CIRCUIT)["change"].abs() < 1e-5).all()


@pytest.fixture
def removing(monkeypatch):
    """Minimality where each component's removal changes the prompts' scores by given numbers."""

    def minimality(changes):
        n = len(next(iter(changes.values())))
        model = SimpleNamespace(n_layers=1, n_heads=len(changes) - 1)

        class Pruning:
            def __init__(self, evaluator, outside):
                assert outside == set()
                self.score = torch.full((n,), 9.0)

            def try_without(self, gone):
                return self.score + torch.tensor(changes[str(gone[0])])

        monkeypatch.setattr(quality, "Pruning", Pruning)
        whole = SimpleNamespace(logit_diff=torch.full((n,), 10.0))
        judge = SimpleNamespace(model=model, intact=whole)
        return quality.minimality(judge, components(model))

    return minimality


def test_minimality_is_corrected_for_as_many_tests_as_components(removing):
    """P-values of five prompts by counting sign patterns, then Benjamini and Hochberg's rule."""
    by_hand = {
        "0.2": ([-1.0, -2, -3, -4, -5], 1 / 32, 4 / 32),  # as the third
        "0.4": ([0.0, -2, -3, -4, -5], 1 / 16, 4 / 32),  # four prompts say something; as the third
        "0.0": ([1.0, -2, -3, -4, -5], 2 / 32, 4 / 32),  # 2/32 × 6 / 3
        "mlp0": ([-1.0, 2, -3, -4, -5], 3 / 32, 4.5 / 32),  # 3/32 × 6 / 4
        "0.3": ([-1.0, -2, 3, -4, -5], 5 / 32, 6 / 32),  # 5/32 × 6 / 5
        "0.1": ([0.0] * 5, 1, 1),
    }
    found = removing({name: changes for name, (changes, *_) in by_hand.items()})
    assert found["component"].tolist() == list(by_hand) and found.index.tolist() == list(range(6))
    assert found["change"].tolist() == pytest.approx([-0.3, -0.28, -0.26, -0.22, -0.18, 0])
    assert found["p"].tolist() == pytest.approx([p for _, p, _ in by_hand.values()])
    assert found["q"].tolist() == pytest.approx([q for _, _, q in by_hand.values()])


def test_two_prompts_can_show_a_quarter_and_one_nothing(removing):
    assert removing({"0.0": [-1.0, -2], "mlp0": [-3.0, -1]})["p"].tolist() == [0.25, 0.25]
    assert removing({"0.0": [-1.0], "mlp0": [-3.0]})["p"].tolist() == [1, 1]


def test_areas_under_and_beside_a_curve_that_overshoots():
    everything = {Component(0, i) for i in range(9)}

    def differences(outside):
        assert [len(gone) for gone in outside] == [9, 8, 0]
        return torch.tensor([[-1.0, 1], [2, 4], [1, 3]])  # 0, 3, 2

    judge = SimpleNamespace(
        outside=lambda circuits: [everything - set(circuit) for circuit in circuits],
        differences=differences,
        intact=SimpleNamespace(logit_diff=torch.tensor([1.0, 3])),
    )
    table, cpr, cmd = quality.curve(judge, [Component(0, i) for i in range(9)], [1])
    assert table["size"].tolist() == [0, 1, 9] and table["faithfulness"].tolist() == [0, 1.5, 1]
    # A ninth of the width between 0 and 1.5, the rest to 1; distances 1, 0.5 and 0.
    assert cpr == pytest.approx(0.75 / 9 + 1.25 * 8 / 9)
    assert cmd == pytest.approx(0.75 / 9 + 0.25 * 8 / 9)


def test_curve_areas(judge, gpt2):
    table, cpr, cmd = quality.curve(judge, components(gpt2), [3, 7])
    assert table["size"].tolist() == [0, 3, 7, 15]
    assert table["faithfulness"].iloc[-1] == pytest.approx(1, abs=1e-5)
    share = table["size"] / 15
    assert cpr == pytest.approx(np.trapezoid(table["faithfulness"], share))
    assert cmd >= abs(1 - cpr) - 1e-6  # the distance is never less than the signed area


def test_kinds_of_ablation_differ(gpt2, judge, sets, means):
    kinds = {"mean": means["gpt2"], "zero": means["gpt2"].zero()}
    said = plain_logits(gpt2, judge.prompts, [], means["gpt2"]).argmax(-1)
    prompts = dataclasses.replace(judge.prompts, answer_ids=said)  # the whole model is right
    circuits = {"c": CIRCUIT, "all": components(gpt2)}
    table = quality.by_ablation(gpt2, prompts, kinds, circuits)
    assert table.equals(quality.by_ablation(gpt2, prompts, kinds, circuits, 0))
    intact = quality.by_ablation(gpt2, prompts, kinds, {"all": components(gpt2)})
    assert intact[["low", "high"]].to_numpy() == pytest.approx(1, abs=1e-5)
    assert not table.equals(quality.by_ablation(gpt2, prompts, kinds, circuits, 1))
    table = table.set_index(["circuit", "ablation"])
    rest = [c for c in components(gpt2) if c not in CIRCUIT]
    for kind, new in kinds.items():
        logits = [plain_logits(gpt2, prompts, names, new) for names in (rest, [])]
        kl, correct = plain_kl_and_accuracy(*logits, prompts)
        row = table.loc[("c", kind)]
        assert row["kl"] == pytest.approx(kl, abs=1e-4) and kl > 0.01
        assert row["accuracy"] == pytest.approx(correct)
        assert table.loc[("all", kind), "accuracy"] == 1
    table = table["mean"]
    assert table["all", "mean"] == pytest.approx(1, abs=1e-5)
    assert table["c", "mean"] != pytest.approx(table["c", "zero"], abs=1e-3)


@pytest.fixture
def answerable(gpt2, sets, means):
    """Prompt sets on which a random model has something to lose."""
    answers = evaluator_of(gpt2, sets.discovery, means["gpt2"]).answers
    return dataclasses.replace(sets, discovery=answers)


def test_inclusion_counts_what_is_found_again(gpt2, answerable, monkeypatch):
    seen = []

    def search(name):
        def found(evaluator, threshold, orders=None):
            seen.append((name, evaluator.prompts.tokens.tolist(), threshold))
            seen[-1] += (list(itertools.islice(orders(evaluator.model), 2)) if orders else [],)
            return search_module.Discovery(set(CIRCUIT[: len(seen)]), 1.0, [])

        return found

    for name in ("ranked", "sweep"):
        monkeypatch.setattr(quality, name, search(name))
    seeds = []
    draw = lambda seed: seeds.append(seed) or answerable  # noqa: E731
    searches = quality.repeated(gpt2, draw, 3, 0.7, 3, seed=5)
    assert searches["kind"].tolist() == ["prompts"] * 3 + ["seed"] * 3 + ["order"] * 2
    assert searches["components"].iloc[1] == " ".join(sorted(map(str, CIRCUIT[:2])))
    found = quality.inclusion(searches, components(gpt2)).set_index("component")
    assert [s[0] for s in seen] == ["ranked"] * 6 + ["sweep"] * 2  # of the slow ones, half
    assert all(len(s[1]) == 3 and s[2] == 0.7 for s in seen)
    assert len({str(s[1]) for s in seen[:3]}) > 1  # resampled
    assert len(set(seeds)) == 4 and seeds.count(5) == 1  # three seeds of their own
    orders = [tuple(order) for s in seen[6:] for _, order in s[3]]
    assert len(set(orders)) == 4 and all(set(o) == set(components(gpt2)) for o in orders)
    first, second, last = (found.loc[str(CIRCUIT[i])] for i in (0, 1, 3))
    assert first[["inclusion", "prompts", "seed", "order"]].tolist() == [1, 1, 1, 1]
    assert second["prompts"] == pytest.approx(2 / 3)
    assert second["inclusion"] == pytest.approx(7 / 8)
    assert last[["prompts", "seed", "order"]].tolist() == [0, 1, 1]
    assert found["inclusion"].sum() == pytest.approx((1 + 2 + 3 + 4 * 5) / 8)


def test_repeated_searches_are_drawn_by_the_seed(gpt2, answerable, monkeypatch):
    def search(evaluator, threshold, orders=None):
        if orders:
            seen.append(next(orders(evaluator.model)))
        else:
            seen.append(evaluator.prompts.tokens.tolist())
        return search_module.Discovery(set(CIRCUIT), 1.0, [])

    def repeat(seed):
        seen.clear()
        draw = lambda drawn: seen.append(drawn) or answerable  # noqa: E731
        quality.repeated(gpt2, draw, 3, 0.7, 2, seed=seed)
        return list(seen)

    seen = []
    for name in ("ranked", "sweep"):
        monkeypatch.setattr(quality, name, search)
    first = repeat(5)
    assert first == repeat(5) and first[0] == 5
    # Two resamples, two more draws with a search each, and of the slow ones half as many.
    assert len(first) == 1 + 2 + 2 * 2 + 1
    assert all(a != b for a, b in zip(first[1:3], repeat(6)[1:3], strict=True))
    assert [first[3], first[5]] == [79642317, 513626964]  # numbers of the book hang on these seeds


def test_a_repeated_search_that_cannot_be_counts_for_nothing(gpt2, answerable):
    prompts = answerable.discovery
    swapped = dataclasses.replace(prompts, answer_ids=prompts.last_ids, last_ids=prompts.answer_ids)
    hopeless = dataclasses.replace(answerable, discovery=swapped)

    def draw(seed):
        return answerable if seed == 0 else hopeless

    searches = quality.repeated(gpt2, draw, len(prompts), 0.8, 1, seed=0)
    assert searches["kind"].tolist() == ["prompts", "order"]
    found = quality.inclusion(searches, components(gpt2))
    assert found["seed"].isna().all() and found["order"].isin([0, 1]).all()
    assert found["inclusion"].isin([0, 0.5, 1]).all() and found["inclusion"].max() > 0

"""Overlap against chance, checked with scipy and by simulation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import hypergeom

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.analyses import overlap, role_agreement, transfer
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.figures import common as common_module
from seqcirc_utils.prompts import drawing


def heads(*numbers):
    return {Component(n // 10, n % 10) for n in numbers}


def test_two_sets_follow_the_hypergeometric_law():
    found = overlap.overlap([heads(*range(10)), heads(*range(5, 20))], total=100)
    assert len(found.shared) == 5
    assert found.expected == pytest.approx(1.5)
    assert found.p == pytest.approx(hypergeom.sf(4, 100, 10, 15))


def test_what_is_shared_comes_in_the_models_order():
    some = {Component(1, 0), Component(10, 3), *(Component(0, head) for head in range(12))}
    expected = [*(f"0.{head}" for head in range(12)), "1.0", "10.3"]
    assert list(map(str, overlap.overlap([some, some], 200).shared)) == expected
    found = overlap.layer_overlap([some, some], 11, 12)
    assert list(map(str, found.shared)) == expected and found.total == 11 * 12
    mlps = {Component(10, None), Component(2, None)}
    assert list(map(str, overlap.overlap([mlps, mlps], 12).shared)) == ["mlp2", "mlp10"]


def test_nothing_to_compare():
    empty = overlap.overlap_table({"a": heads(1)}, {"heads": 20, "MLPs": 4})
    columns = overlap.overlap_table({"a": set(), "b": set()}, {"heads": 20, "MLPs": 4}).columns
    assert empty.empty and list(empty.columns) == list(columns)
    assert overlap.shared_and_rest({}) == {"core": set()}
    with pytest.raises(UserError, match="no edges in the circuit of any task"):
        overlap.edge_overlap({})


def test_three_sets_agree_with_simulation():
    sizes, total = (12, 9, 15), 30
    sets = [
        heads(*range(3)) | heads(*range(10 * i + 3, 10 * i + 3 + s - 3))
        for i, s in enumerate(sizes)
    ]
    sets = [set(sorted(s)[:size]) for s, size in zip(sets, sizes, strict=True)]
    found = overlap.overlap(sets, total)
    rng = np.random.default_rng(0)
    draws = [
        len(set.intersection(*(set(rng.choice(total, s, replace=False)) for s in sizes)))
        for _ in range(4000)
    ]
    assert found.expected == pytest.approx(np.mean(draws), abs=0.06)
    assert found.p == pytest.approx(np.mean(np.array(draws) >= len(found.shared)), abs=0.03)


def test_sets_that_hold_everything_share_everything():
    everything = heads(*range(10))
    found = overlap.overlap([everything] * 3, total=10)
    assert found.p == pytest.approx(1.0) and found.expected == pytest.approx(10)


def test_table_keeps_heads_and_mlps_apart():
    mlps = {Component(0, None), Component(1, None)}
    circuits = {"a": heads(1, 2) | mlps, "b": heads(2, 3), "c": heads(2) | mlps}
    table = overlap.overlap_table(circuits, {"heads": 20, "MLPs": 4})
    assert len(table) == 8
    row = table[(table["kind"] == "MLPs") & (table["tasks"] == "a & c")].iloc[0]
    assert row["shared"] == 2 and row["jaccard"] == 1
    row = table[(table["kind"] == "heads") & (table["tasks"] == "a & b & c")].iloc[0]
    assert row["shared"] == 1 and row["sizes"] == "2, 2, 1"


def test_every_number_of_the_table_by_hand():
    circuits = {"a": heads(0, 1), "b": heads(1, 2) | {Component(0, None)}, "c": set()}
    table = overlap.overlap_table(circuits, {"heads": 20, "MLPs": 4})
    groups = ["a & b", "a & c", "b & c", "a & b & c"]
    assert table["tasks"].tolist() == groups * 2
    assert table["kind"].tolist() == ["heads"] * 4 + ["MLPs"] * 4
    row = table.iloc[0]
    assert row["sizes"] == "2, 2" and row["shared"] == 1
    # Two of 20 and two of 20: 153 of 190 pairs have nothing in common. Two of the first layer's 5
    # and two of those 5: 3 of 10 pairs.
    assert row["expected"] == pytest.approx(2 * 2 / 20) and row["p"] == pytest.approx(37 / 190)
    assert row["layer_expected"] == pytest.approx(2 * 2 / 5)
    assert row["layer_p"] == pytest.approx(0.7) and row["jaccard"] == pytest.approx(1 / 3)
    for column, value in {"shared": 0, "expected": 0, "jaccard": 0, "p": 1, "layer_p": 1}.items():
        assert table.loc[1:3, column].tolist() == pytest.approx([value] * 3), column
    assert np.isnan(table.loc[5, "jaccard"])  # neither has an MLP
    assert len(overlap.overlap_table({t: circuits[t] for t in "ab"}, {"heads": 20, "MLPs": 4})) == 2


def test_each_search_is_compared_over_the_tasks_that_have_it():
    a, b, c = heads(0, 1, 12), heads(1, 12, 20), heads(12, 13)
    circuits = {"x": {"one": a, "two": b}, "y": {"two": c, "one": b}, "z": {"one": c}}
    found = overlap.overlap_by_search(circuits, {"heads": 30, "MLPs": 3}).set_index("search")
    assert found["tasks"].to_dict() == {"one": "x & y & z", "two": "x & y"}
    assert found["sizes"].to_dict() == {"one": "3, 3, 2", "two": "3, 2"}
    assert found["shared"].to_dict() == {"one": 1, "two": 1}  # 1.2
    assert found["jaccard"].to_dict() == pytest.approx({"one": 1 / 5, "two": 1 / 4})
    law = overlap.layer_overlap([b, c], 3, 10)
    two = found.loc["two", ["expected", "layer_expected", "layer_p"]]
    assert two.tolist() == pytest.approx([3 * 2 / 30, law.expected, law.p])
    alone = overlap.overlap_by_search({"x": {"one": a}}, {"heads": 30, "MLPs": 3})
    assert alone.empty and list(alone) == list(found.reset_index())


def test_importance_is_compared_by_rank():
    effects = pd.DataFrame({"a": [1.0, 2, 3], "b": [1.0, 4, 90], "c": [3.0, 2, 1]})
    table = overlap.importance_correlation(effects)
    assert table.loc["a", "b"] == pytest.approx(1) and table.loc["a", "c"] == pytest.approx(-1)


def test_layer_matched_chance_agrees_with_simulation():
    sets = [heads(0, 1, 11, 21, 22, 23), heads(0, 2, 12, 11, 21, 22), heads(0, 21, 22, 23, 29, 13)]
    found = overlap.layer_overlap(sets, n_layers=4, n_heads=10)
    rng = np.random.default_rng(0)

    def draw(circuit):
        return {
            Component(layer, int(head))
            for layer in range(4)
            for head in rng.choice(10, sum(c.layer == layer for c in circuit), replace=False)
        }

    draws = np.array([len(set.intersection(*map(draw, sets))) for _ in range(4000)])
    assert found.shared == [Component(0, 0), Component(2, 1), Component(2, 2)]
    assert found.expected == pytest.approx(draws.mean(), abs=0.04)
    assert found.p == pytest.approx((draws >= 3).mean(), abs=0.01)
    # Circuits that fill the same layers share everything by necessity: nothing to be surprised at.
    full = overlap.layer_overlap([heads(*range(10))] * 2, n_layers=4, n_heads=10)
    assert full.p == pytest.approx(1) and full.expected == pytest.approx(10)
    assert overlap.overlap([heads(*range(10))] * 2, 40).p < 1e-6


def test_mlps_take_no_head_s_place_by_chance():
    """A layer's MLP was drawn as one more of its heads: 8 shared by chance where it was 19."""
    some = [heads(0, 1, 11, 21), heads(0, 2, 12, 21)]
    mlps = [{Component(layer, None) for layer in of} for of in ((0, 1, 2), (0, 1, 3))]
    both = overlap.layer_overlap([a | b for a, b in zip(some, mlps, strict=True)], 4, 10)
    apart = overlap.layer_overlap(some, 4, 10), overlap.overlap(mlps, 4)
    assert both.expected == pytest.approx(sum(one.expected for one in apart))
    assert both.total == 44 and len(both.shared) == 4 and both.p > apart[0].p


def test_table_gives_the_layer_matched_null_for_heads_alone():
    mlps = {Component(0, None), Component(1, None)}
    circuits = {"a": heads(1, 2, 15) | mlps, "b": heads(2, 3, 15) | mlps}
    table = overlap.overlap_table(circuits, {"heads": 20, "MLPs": 2}).set_index("kind")
    assert table.loc["heads", "layer_expected"] == pytest.approx(2 * 2 / 10 + 1 / 10)
    assert np.isnan(table.loc["MLPs", "layer_p"])


def test_edges_are_compared_among_shared_nodes():
    common = ["0.1->1.2.q", "mlp0->1.2.v", "1.2->logits"]
    edges = {"a": [*common, "0.1->mlp0"], "b": [*common, "0.3->1.2.q"]}
    found = overlap.edge_overlap(edges)
    assert found.shared == sorted(common)
    # Nodes of both: 0.1, mlp0, 1.2. Possible: 0.1 into mlp0, both into q, k, v of 1.2, all three
    # into the logits. Of a's four edges all join them, of b's only three.
    assert found.possible == 1 + 6 + 3
    assert found.p == pytest.approx(hypergeom.sf(2, 10, 4, 3))
    with pytest.raises(UserError, match="no edges in the circuit of b"):
        overlap.edge_overlap({"a": common, "b": []})


def test_circuits_without_a_common_node_share_no_edge_by_any_chance():
    found = overlap.edge_overlap({"a": ["0.1->mlp0"], "b": ["0.2->mlp1"]})
    assert vars(found) == {"shared": [], "possible": 0, "expected": 0, "p": 1}


@pytest.fixture(scope="module")
def evaluators(gpt2):
    found = {}
    for task in ("months", "number_words"):
        sets = drawing.prompt_sets(gpt2, task, n_prompts=6, n_means=8)
        means = record(gpt2, sets.means).activations.mean()
        evaluator = Evaluator(gpt2, sets.evaluation, means)
        if evaluator.intact.logit_diff.mean() <= 0:  # a random model: turn the question round
            prompts = sets.evaluation
            turned = replace(prompts, answer_ids=prompts.last_ids, last_ids=prompts.answer_ids)
            evaluator = Evaluator(gpt2, turned, means)
        found[task] = evaluator
    return found


def test_transfer_keeps_and_ablates_each_set_on_each_task(gpt2, evaluators):
    everything = components(gpt2)
    sets = {"all": everything, "nothing": [], "half": everything[:7]}
    table = transfer.transfer(evaluators, sets).set_index(["mode", "set", "task"])
    assert len(table) == 18
    assert table.equals(transfer.transfer(evaluators, sets, 0).set_index(table.index.names))
    assert not table.equals(transfer.transfer(evaluators, sets, 1).set_index(table.index.names))
    for task, evaluator in evaluators.items():
        for untouched in (("kept", "all", task), ("ablated", "nothing", task)):
            # Nothing is ablated: exactly all is left, whichever prompts are drawn.
            assert table.loc[untouched].tolist() == pytest.approx([1, 1, 1], abs=1e-5)
        plain = evaluator.replaced([everything[7:]]).logit_diff.mean()
        row = table.loc[("kept", "half", task)]
        assert row["mean"] == pytest.approx(float(plain / evaluator.intact.logit_diff.mean()), 1e-4)
        assert row["low"] <= row["mean"] <= row["high"]
        same = table.loc[("ablated", "all", task)], table.loc[("kept", "nothing", task)]
        assert same[0]["mean"] == pytest.approx(same[1]["mean"], abs=1e-5)
        some = [c for c in everything[:7] if c.head is not None]
        plain = evaluator.replaced([some]).logit_diff.mean() / evaluator.intact.logit_diff.mean()
        assert table.loc[("heads", "half", task), "mean"] == pytest.approx(float(plain), 1e-4)


def test_transfer_refuses_a_task_that_the_model_fails(evaluators):
    evaluator = evaluators["months"]
    turned = evaluator.with_()
    turned.intact = replace(evaluator.intact, logit_diff=-evaluator.intact.logit_diff)
    with pytest.raises(UserError, match="the whole model on months"):
        transfer.transfer({"months": turned}, {"nothing": []})
    with pytest.raises(UserError, match="did you mean 'kept'"):
        transfer.transfer(evaluators, {"nothing": []}, modes=["keep"])
    assert transfer.transfer(evaluators, {}).empty


def test_random_circuits_by_hand():
    """A set's score is 2 a component when kept, 10 less 2 each when ablated, of 10 in all."""
    everything = set(range(5))  # as many components in all

    def differences(gone, progress=None):
        means = torch.tensor([10.0 - 2 * len(some) for some in gone])
        return means[:, None] + torch.tensor([-1.0, 1.0])

    evaluator = SimpleNamespace(
        intact=SimpleNamespace(logit_diff=torch.tensor([8.0, 12.0])),
        outside=lambda circuits: [set(list(everything)[len(c) :]) for c in circuits],
        differences=differences,
    )
    mlp = {Component(0, None)}
    circuits = {"own": heads(0, 1) | mlp}
    # Sizes 1, 2, 3, 5, of which heads: 1, 1, 3, 4.
    draws = [heads(5), heads(5) | mlp, heads(4, 5, 6), heads(4, 5, 6, 7) | mlp]
    random = {"any": {"own": draws}}
    modes = ("kept", "ablated", "heads")
    rows, table = transfer.against_random({"t": evaluator}, circuits, random, modes=modes)
    found = table.set_index("mode")
    assert found["value"].to_dict() == pytest.approx({"kept": 0.6, "ablated": 0.4, "heads": 0.6})
    expected = {"kept": 0.55, "ablated": 0.45, "heads": 0.55}
    assert found["random"].to_dict() == pytest.approx(expected)
    # As much is kept by 3 and 5; as little is left without 3 and 5; without 3 and 4 heads.
    assert found["p"].to_dict() == pytest.approx(dict.fromkeys(modes, 3 / 5))
    assert rows.index.tolist() == list(range(12)) and table["mode"].tolist() == list(modes)
    drawn = rows.set_index(["mode", "draw"])["mean"]
    assert drawn["kept"].tolist() == pytest.approx([0.2, 0.4, 0.6, 1.0])
    assert drawn["heads"].tolist() == pytest.approx([0.8, 0.8, 0.4, 0.2])
    worse = {"any": {"own": [heads(5), heads(5), heads(*range(20))]}}
    _, table = transfer.against_random({"t": evaluator}, circuits, worse)
    assert table["mode"].tolist() == ["kept", "heads"]
    assert table["p"].tolist() == [2 / 4, 2 / 4]


def test_random_circuits_are_compared_in_the_right_direction(gpt2, evaluators):
    everything = components(gpt2)
    circuits = {"all": set(everything), "none": set()}
    random = {"any": {"all": [everything[:1], everything[3:5]], "none": [everything] * 3}}
    both = ("kept", "ablated")
    draws, table = transfer.against_random(evaluators, circuits, random, modes=both)
    assert len(draws) == 2 * 2 * (2 + 3) and len(table) == 2 * 2 * 2
    table = table.set_index(["mode", "circuit", "task"])
    months = table.xs("months", level="task")
    assert months.loc[("kept", "all"), "value"] == pytest.approx(1, abs=1e-5)
    kept = draws.query("mode == 'kept' and circuit == 'all' and task == 'months'")["mean"]
    hits = (kept >= months.loc[("kept", "all"), "value"]).sum()
    assert months.loc[("kept", "all"), "p"] == pytest.approx((hits + 1) / 3)
    assert months.loc[("kept", "all"), "random"] == pytest.approx(kept.mean())
    # Ablated, a random circuit does as much harm when it leaves as little, or less.
    whole, left = months.loc[("ablated", "none")], set()
    for task in evaluators:
        row = table.loc[("ablated", "none", task)]
        left.add((row["p"], bool(row["random"] <= row["value"])))
    assert whole["value"] == pytest.approx(1, abs=1e-5)
    assert left <= {(1.0, True), (0.25, False)}


def test_core_and_rest_make_up_the_circuits():
    circuits = {"a": heads(1, 2, 3), "b": heads(2, 3, 4)}
    parts = overlap.shared_and_rest(circuits)
    assert parts == {"core": heads(2, 3), "a rest": heads(1), "b rest": heads(4)}


def roles_of(*roles):
    return {Component(0, i): role for i, role in enumerate(roles)}


def test_roles_agree_or_do_not():
    shared = [Component(0, i) for i in range(6)]
    mixed = roles_of("next", "next", "copy", "detect", "move", "none")
    same = role_agreement.role_agreement({"a": mixed, "b": mixed, "c": mixed}, shared)
    assert (same.same, same.pairs) == (15, 18) and same.p < 0.01 and same.expected < 8
    turned = dict(zip(shared, list(mixed.values())[1:] + ["next"], strict=True))
    other = role_agreement.role_agreement({"a": mixed, "b": turned}, shared)
    assert other.same == 1 and other.p > 0.2
    # One role for all: agreement is certain, and the permutation knows it.
    dull = roles_of(*["next"] * 6)
    found = role_agreement.role_agreement({"a": dull, "b": dull}, shared, draws=99)
    assert found.same == found.expected == 6 and found.p == 1
    nothing = roles_of(*["none"] * 6)
    assert role_agreement.role_agreement({"a": nothing, "b": nothing}, shared, draws=9).same == 0
    assert role_agreement.role_agreement({"a": mixed, "b": mixed}, [], draws=9).p == 1
    with pytest.raises(UserError, match="no role for 0.6"):
        role_agreement.role_agreement({"a": mixed, "b": mixed}, [Component(0, 6)])


def test_expected_agreement_is_the_permutations_mean():
    a, b = roles_of("x", "x", "y", "z"), roles_of("x", "y", "y", "none")
    found = role_agreement.role_agreement({"a": a, "b": b}, list(a), draws=4000)
    assert found.same == 2 and found.expected == pytest.approx((2 * 1 + 1 * 2) / 4, abs=0.05)


def test_a_p_value_of_agreement_by_counting_orders():
    """Three roles dealt out anew: of six orders one agrees in all, three in one, two in none."""
    a = roles_of("x", "y", "z")
    full = role_agreement.role_agreement({"a": a, "b": a}, list(a))
    assert (full.same, full.pairs) == (3, 3)
    assert full.p == pytest.approx(1 / 6, abs=0.015) and full.expected == pytest.approx(1, abs=0.04)
    assert full.p * 10_000 == pytest.approx(round(full.p * 10_000))  # 9999 draws and the true one
    turned = dict(zip(a, "yxz", strict=True))
    one = role_agreement.role_agreement({"a": a, "b": turned}, list(a))
    assert one.same == 1 and one.p == pytest.approx(4 / 6, abs=0.015)
    # A role that is none agrees with nothing: two heads are left, which change places.
    b = roles_of("x", "y", "none")
    some = role_agreement.role_agreement({"a": b, "b": b}, list(b))
    assert some.same == 2 and some.p == pytest.approx(1 / 6, abs=0.015)
    assert some.expected == pytest.approx(2 / 3, abs=0.03)
    assert one == role_agreement.role_agreement({"a": a, "b": turned}, list(a)[::-1])
    other = role_agreement.role_agreement({"a": a, "b": turned}, list(a), seed=1)
    assert one != other and one == role_agreement.role_agreement(
        {"a": a, "b": turned}, list(a), seed=0
    )


def test_role_holders_tell_shared_from_analogous():
    a, b = roles_of("x", "y", "x", "none"), roles_of("x", "x", "none", "x")
    table = role_agreement.role_holders(
        {"a": a, "b": b}, {"a": heads(0, 1, 2), "b": heads(0, 1, 3)}
    )
    table = table.set_index("role")
    assert table.loc["x"].to_dict() == {"shared": "0.0", "changing": "0.1", "a": "0.2", "b": "0.3"}
    assert table.loc["y"].to_dict() == {"shared": "", "changing": "0.1", "a": "", "b": ""}
    assert "none" not in table.index and list(table.index) == ["x", "y"]
    many = {Component(i // 12, i % 12): "x" for i in (13, 2, 10)}
    circuits = {"a": set(many) | heads(7), "b": set(many)}  # 0.7 has no role
    table = role_agreement.role_holders({"a": many, "b": many}, circuits)
    assert table.to_numpy().tolist() == [["x", "0.2, 0.10, 1.1", "", "", ""]]
    empty = role_agreement.role_holders({"a": {}}, {"a": heads(7)})
    assert empty.empty and list(empty.columns) == ["role", "shared", "changing", "a"]
    assert list(role_agreement.role_holders({}, {}).columns) == ["role", "shared", "changing"]


def test_map_letters_are_the_roles():
    circuits = {"digits": heads(0, 11), "months": heads(0)}
    roles = {"digits": {Component(0, 0): "copy"}, "months": {Component(0, 0): "none"}}
    figure = common_module.circuit_map(circuits, 2, 2, roles=roles, role_letters={"copy": "C"})
    assert [text.get_text() for text in figure.axes[0].texts] == ["C", "C copy"]
    assert common_module.circuit_map({}, 2, 2).axes

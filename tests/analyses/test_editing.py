"""Edits against whole passes with plain hooks; picks, null and collateral by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import plain_edit, plain_loss
from scipy.stats import mannwhitneyu

from seqcirc_utils.analyses import editing
from seqcirc_utils.analyses.editing import Edit, Measured
from seqcirc_utils.components import Component
from seqcirc_utils.prompts import scores

HEAD, MLP = Component(1, 2), Component(1, None)
EDITS = [
    *(Edit(HEAD, f) for f in (2.0, 0.0, 1.0)),
    Edit(MLP, 0.5),
    Edit(Component(0, 0), 0.0),
    Edit(Component(2, None), 0.0),
]


def test_edits_equal_whole_passes(any_tiny, sets):
    prompts = sets.evaluation
    found = Measured.prompts(any_tiny, prompts, EDITS)
    for edit in EDITS:
        with torch.no_grad():
            hooks = [plain_edit(edit)]
            logits = any_tiny.bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks)[:, -1]
        plain = scores.Scores.read(logits, prompts)
        after = found.after[edit]
        torch.testing.assert_close(after, plain.logit_diff, atol=1e-4, rtol=1e-4)
        assert found.right_after[edit].tolist() == plain.correct.tolist()
    intact = scores.score(any_tiny, prompts).logit_diff
    torch.testing.assert_close(found.before, intact, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.after[EDITS[2]], intact, atol=1e-4, rtol=1e-4)  # factor 1
    assert found.change(EDITS[0]).abs().max() > 1e-3


def test_edits_act_on_text_and_leave_no_hooks(any_tiny, sets, hooks_left):
    before, tokens = hooks_left(any_tiny), sets.evaluation.tokens
    found = Measured.text(any_tiny, tokens, EDITS)
    torch.testing.assert_close(found.before, plain_loss(any_tiny, tokens), atol=1e-5, rtol=1e-5)
    for edit in EDITS:
        plain = plain_loss(any_tiny, tokens, [plain_edit(edit)])
        torch.testing.assert_close(found.after[edit], plain, atol=1e-5, rtol=1e-5)
        assert (found.change(edit).abs().max() > 1e-4) == (edit.factor != 1)
    assert hooks_left(any_tiny) == before


def test_edit_names():
    assert [Edit(HEAD, f).name for f in (0, 0.5, 1, 1.5)] == ["remove", "damp", "keep", "boost"]


CIRCUITS = {
    "a": {Component(0, 0), Component(0, 1), Component(0, None), Component(3, None)},
    "b": {Component(0, 0), Component(1, 1), Component(3, None)},
    "c": {Component(0, 0), Component(0, 1)},
}


def test_picks_follow_the_rule():
    everything = set.union(*CIRCUITS.values())
    effects = {task: {c: -0.1 for c in everything} for task in CIRCUITS}
    effects["a"][Component(0, None)] = -0.9
    effects["b"][Component(1, 1)] = 0.2  # ablating it helps: no successor component
    found = editing.picks(CIRCUITS, effects, n_layers=4)
    by_task = {t: {p.part: str(p.component) for p in found if p.task == t} for t in CIRCUITS}
    assert by_task == {
        "a": {"shared head": "0.0", "MLP": "mlp0", "upper MLP": "mlp3"},
        "b": {"shared head": "0.0", "MLP": "mlp3", "upper MLP": "mlp3"},
        "c": {"shared head": "0.0"},
    }
    effects["b"][Component(1, 1)] = -0.2
    own = [p for p in editing.picks(CIRCUITS, effects, 4) if p.part == "own head"]
    assert [(p.task, str(p.component), p.effect) for p in own] == [("b", "1.1", -0.2)]


def test_heads_of_a_single_circuit_are_its_own():
    assert editing.group(Component(0, 0), CIRCUITS) == "shared head"
    assert editing.group(Component(0, 1), CIRCUITS) == "some"
    assert editing.group(Component(0, 0), {"a": CIRCUITS["a"]}) == "own head"


def test_random_edits_match_kind_and_layer():
    found = editing.random_components(
        [Component(2, 0), Component(5, 1), Component(0, None)], 6, 4, 5
    )
    heads, mlps = ([c for c in found if (c.head is None) == kind] for kind in (False, True))
    assert len(heads) == len(set(heads)) == 5 and {c.layer for c in heads} <= {2, 5}
    assert len(mlps) == len(set(mlps)) == 5
    assert found == editing.random_components([Component(5, 1), Component(2, 0), MLP], 6, 4, 5)
    assert (
        len(editing.random_components([Component(2, 0)], 6, 4, 99)) == 4
    )  # all heads of one layer


def test_table_by_hand():
    edit, null = Edit(HEAD, 0.0), [Edit(Component(1, h), 0.0) for h in (0, 1, 3)]
    own = Measured(
        torch.tensor([4.0, 2.0, 3.0]),
        {edit: torch.tensor([1.0, 1.0, 3.0])},
        torch.tensor([True, True, False]),
        {edit: torch.tensor([True, False, False])},
    )
    # Random edits are measured on two prompts only, where the edit's own change is -2.
    random = Measured(
        own.before[:2],
        {e: own.before[:2] + shift for e, shift in zip(null, (0.5, -2.5, 2.0), strict=True)},
        own.right_before[:2],
        {},
    )
    text = Measured(torch.tensor([3.0, 3.0]), {}, torch.empty(0), {})
    text = text._replace(after={e: text.before + 0.1 for e in (edit, *null)})
    pick = editing.Pick("a", "shared head", HEAD, -0.5)
    targets = {"a": own.with_random(random), "text": text}
    table = editing.edit_table([pick], [0.0], [e.component for e in null], targets)
    row, words = table.iloc[0], table.iloc[1]
    assert (row["edit"], row["component"], row["edited_task"]) == ("remove", "1.2", "a")
    assert row["score_before"] == 3 and row["score_after"] == pytest.approx(5 / 3)
    assert row["change"] == pytest.approx(-4 / 3) and row["low"] <= row["change"] <= row["high"]
    assert row["random_mean"] == pytest.approx(0) and row["draws"] == 3
    assert row["p"] == pytest.approx((2 + 1) / (3 + 1))  # 2.5 and 2.0 reach 2.0; 0.5 does not
    assert row["accuracy_before"] == pytest.approx(2 / 3)
    assert row["accuracy_after"] == pytest.approx(1 / 3)
    assert words["change"] == pytest.approx(0.1) and np.isnan(words["accuracy_before"])


def test_measured_edit_wins_over_the_random_one(gpt2, sets):
    own = Measured.prompts(gpt2, sets.evaluation, [Edit(HEAD, 0.0)])
    few = Measured.prompts(gpt2, sets.evaluation[range(2)], [Edit(HEAD, 0.0), Edit(MLP, 0.0)])
    both = own.with_random(few)
    assert len(both.change(Edit(HEAD, 0.0))) == len(sets.evaluation)
    assert len(both.change(Edit(MLP, 0.0))) == 2
    torch.testing.assert_close(
        both.change(Edit(HEAD, 0.0), 2), few.change(Edit(HEAD, 0.0)), atol=1e-4, rtol=1e-4
    )


def effects(**costs):
    rows = [(c, -v, -v + 0.05) for c, v in costs.items()]
    table = pd.DataFrame(rows, columns=["component", "ablation", "ablation_high"])
    return table.assign(component=table["component"].str.removeprefix("h").str.replace("_", "."))


def test_collateral_by_hand():
    tables = {
        "a": effects(h0_0=0.5, h0_1=0.4, h1_1=0.1),
        "b": effects(h0_0=0.4, h0_1=0.02, h1_1=0.2),
        "c": effects(h0_0=0.6, h0_1=0.3, h1_1=-0.1),
    }
    found = editing.selectivity(CIRCUITS, tables)
    rows = found.set_index(["task", "component"])
    assert rows.loc[("a", "0.0"), "collateral"] == pytest.approx(1.0)
    assert rows.loc[("a", "0.1"), "others"] == pytest.approx(0.16)
    assert rows.loc[("b", "1.1"), "group"] == "own head"
    assert rows.loc[("b", "1.1"), "collateral"] == pytest.approx(0.0)
    shared, own, p = editing.safer(found)
    by_head = found[found["group"] == "shared head"]["collateral"].mean()
    assert shared == pytest.approx(by_head) and own == pytest.approx(0)
    assert p == pytest.approx(mannwhitneyu([by_head], [0.0]).pvalue)
    none = editing.selectivity({"a": CIRCUITS["a"]}, tables)
    assert none.empty and np.isnan(editing.safer(none)).all()


def test_heads_of_unclear_effect_are_left_out():
    tables = {"a": effects(h0_0=0.04, h0_1=0.4), "b": effects(h0_0=0.4, h0_1=0.1)}
    circuits = {"a": {Component(0, 0), Component(0, 1)}, "b": {Component(0, 0)}}
    found = editing.selectivity(circuits, tables)
    assert found[["task", "component"]].to_numpy().tolist() == [["a", "0.1"], ["b", "0.0"]]

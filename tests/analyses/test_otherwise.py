"""What kept measurements say of another choice, against plain ways to say it."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from seqcirc_utils.analyses import attention, otherwise, roles


def steps(*rows):
    return pd.DataFrame(rows, columns=["component", "score", "removed"])


def test_the_smallest_circuit_on_the_way_keeps_the_threshold():
    tried = steps(
        ("a b", 0.95, True),
        ("c", 0.70, False),
        ("d", 0.85, True),  # for a while below what is asked for later
        ("e", 0.92, True),
        ("f", 0.81, True),
    )
    everything = list("abcdefg")
    assert otherwise.on_path(tried, everything, 0.8) == ["c", "g"]
    assert otherwise.on_path(tried, everything, 0.9) == ["c", "f", "g"]
    assert otherwise.on_path(tried, everything, 0.94) == ["c", "d", "e", "f", "g"]
    assert otherwise.on_path(tried, everything, 0.99) == everything
    assert otherwise.on_path(steps().astype({"removed": bool}), everything, 0.5) == everything


def test_room_is_spent_until_nothing_more_fits():
    costs = {"loud": 0.18, "soft": 0.09, "other": 0.09}
    assert set(otherwise.spendings(costs, 0.2)) == {
        frozenset({"loud"}),
        frozenset({"soft", "other"}),
    }
    assert set(otherwise.spendings(costs, 0.18)) == set(otherwise.spendings(costs, 0.2))
    assert set(otherwise.spendings(costs, 0.1)) == {frozenset({"soft"}), frozenset({"other"})}
    assert otherwise.spendings(costs, 0.05) == [frozenset()]
    assert otherwise.spendings(costs, 1) == [frozenset(costs)]


def test_a_search_in_any_order_ends_in_one_of_the_spendings():
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs, room = dict(zip("abcd", rng.random(4), strict=True)), rng.random() * 2
        ends = set()
        for order in itertools.permutations(costs):
            gone: set[str] = set()
            for name in order:
                if sum(costs[n] for n in gone | {name}) <= room:
                    gone.add(name)
            ends.add(frozenset(gone))
        assert ends == set(otherwise.spendings(costs, room))


@pytest.fixture
def evidence():
    """Evidence of many heads and MLPs, with values on both sides of every cut-off."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame(
        {name: rng.random(400) for name in (*roles.HEAD_EVIDENCE, *roles.MLP_EVIDENCE)}
        | {name: rng.random(400) * 0.02 for name in ("p_next", "p_copy")}
    )
    table["direct_last"] -= 0.5
    table["ov_copy"] -= 0.5
    heads, mlps = slice(0, 299), slice(300, None)
    table.loc[heads, ["lens_next", "lens_last"]] = np.nan
    table.loc[mlps, [*attention.SIZE_EVIDENCE, "ov_next", "ov_copy", "direct_last"]] = np.nan
    return table


def test_roles_with_more_attention_are_those_of_the_rules_changed(evidence, monkeypatch):
    spread = {name: 0.05 * i for i, name in enumerate(attention.SIZE_EVIDENCE, 1)}
    found = {least: otherwise.roles_at(evidence, spread, least) for least in (0.2, 0.4, 0.7)}
    means = {name: evidence[name].to_numpy() for name in evidence}
    for least, given in found.items():
        monkeypatch.setattr(roles, "ATTENTION", least)
        assert given.tolist() == roles.assign(means, spread).tolist()
    assert (found[0.2] != found[0.4]).any() and (found[0.4] != found[0.7]).any()
    assert found[0.2][300:].equals(found[0.7][300:])  # MLPs have no attention
    monkeypatch.setattr(roles, "ATTENTION", 0.2)
    with pytest.raises(ValueError, match=r"at least 0\.2"):
        otherwise.roles_at(evidence, spread, 0.1)


def test_what_cannot_be_told_has_no_role(evidence):
    spread = dict.fromkeys(attention.SIZE_EVIDENCE, 0.1)
    found = otherwise.roles_at(evidence.assign(ov_next=np.nan), spread, 0.4)
    assert set(found[:299]) == {""} and set(found[300:]) <= {*roles.MLP_ROLES, roles.NONE}


def test_the_leading_part_of_a_circuit_costs_most():
    effects = pd.Series({"a": -0.5, "b": 0.2, "c": -0.1, "d": -0.9, "e": -0.3})
    assert otherwise.leading(effects, "abce", 0.5) == {"a", "e"}
    assert otherwise.leading(effects, "abce", 0.01) == {"a"}
    assert otherwise.leading(effects, "abce", 1) == set("abce")
    assert otherwise.leading(effects, "", 0.5) == set()


def test_the_largest_are_counted_column_by_column():
    values = torch.randn(30, 7, generator=torch.Generator().manual_seed(0)).numpy()
    found = otherwise.same_set(values, 4)
    top = sorted(range(30), key=lambda row: -abs(values[row].mean()))[:4]
    assert found[:, 0].tolist() == top
    for row, count in found:
        tops = [sorted(range(30), key=lambda r: -abs(values[r, c]))[:4] for c in range(7)]
        assert count == sum(row in top for top in tops)


def test_heads_stand_in_the_models_order():
    assert otherwise.heads_of(["10.1", "mlp3", "2.11", "2.3"]) == ["2.3", "2.11", "10.1"]

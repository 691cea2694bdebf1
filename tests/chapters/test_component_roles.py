"""What chapter 05 finds: measured, kept, told and drawn; what cannot be told leaves the rest."""

import dataclasses
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from seqcirc_utils.analyses import roles, writes
from seqcirc_utils.analyses.shuffling import shuffled_weights
from seqcirc_utils.chapters import component_roles as chapter
from seqcirc_utils.chapters.component_roles import ComponentRoles
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.figures import component_roles as figures
from seqcirc_utils.models import capabilities
from seqcirc_utils.paper.evidence import Evidence
from seqcirc_utils.planted.circuits import PLANTED
from seqcirc_utils.planted.parts import Head

PARAMETERS = {
    "task": "months",
    "templates": ["born"],
    "n_prompts": 6,
    "n_means": 8,
    "n_examples": 3,
    "seed": 0,
}
HEADS, MLPS = {"ov", "direct"}, {"lens"}


@pytest.fixture(scope="module")
def planted():
    """A planted model with a head that repeats the last member: it has OV scores of its own."""
    changes = {"1.1": Head("", "newest member", "member", "next")}
    return replace(PLANTED["path"], changes={**PLANTED["path"].changes, **changes}).build()


def setting_of(model):
    everything = components(model)
    effects = pd.DataFrame({"component": list(map(str, everything))})
    effects["ablation"] = -np.linspace(0, 1, len(everything))  # the later, the more important
    circuit = SimpleNamespace(components={Component(0, 0), Component(1, 1), Component(1, None)})

    def read(kind, task):
        return SimpleNamespace(effects=effects[::-1], circuit=circuit)  # order must not matter

    return Setting(PARAMETERS, read=read, model=model)


@pytest.fixture(scope="module")
def setting(planted):
    return setting_of(planted)


@pytest.fixture(scope="module")
def found(setting):
    return ComponentRoles.measure(setting)


def same(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, pd.DataFrame):
            pd.testing.assert_frame_equal(a, b, check_dtype=False, check_exact=True)
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, field.name


def test_what_is_saved_is_what_is_loaded(found, tmp_path):
    found.save(tmp_path)
    loaded = ComponentRoles.load(tmp_path)
    blank = found.components.assign(rival=found.components["rival"].fillna(""))
    same(replace(found, components=blank), loaded)
    loaded.save(tmp_path / "again")
    same(loaded, ComponentRoles.load(tmp_path / "again"))


def test_every_component_has_its_evidence_and_what_others_found(found, planted):
    table = found.components.set_index("component")
    assert list(table.index) == list(map(str, components(planted)))
    assert set(table.index[table["in_circuit"]]) == {"0.0", "1.1", "mlp1"}
    assert table["ablation"].is_monotonic_decreasing and table["ablation"].iloc[-1] == -1
    assert found.by_component()[Component(1, 1)] == table.loc["1.1", "role"] == "copy"
    own = found.ov[(found.ov["input"] == "own") & (found.ov["words"] == "members")]
    for score in ("copy", "next"):
        rows = own[own["score"] == score].set_index("component")
        for name, evidence in (("top5", f"ov_{score}"), ("p", f"p_{score}")):
            np.testing.assert_allclose(rows[name], table.loc[rows.index, evidence], atol=1e-6)
    mlps = found.lens[found.lens["part"] == "mlp"]
    np.testing.assert_allclose(mlps["next"], table["lens_next"].dropna(), atol=1e-6)
    assert found.roles == table["role"].value_counts().to_dict()
    assert sum(found.circuit_roles.values()) == 3 and "copy" not in found.absent_head_roles
    rows = found.attention[(found.attention["query"] == "end")]
    newest = rows[rows["key"] == "newest member"].set_index("component")["mean"]
    wanted = table["head"].notna() & (table["in_circuit"] | (table["role"] != "none"))
    assert set(newest.index) == set(table.index[wanted])
    np.testing.assert_allclose(newest, table.loc[newest.index, "end_to_newest"], atol=1e-6)


def test_roles_under_shuffled_weights_are_those_of_such_a_model(found, setting, planted):
    """The chapter measured anew inside; outside, the model is what it was."""
    with shuffled_weights(planted, PARAMETERS["seed"]):
        inside = ComponentRoles.measure(setting)
    assert found.shuffled_roles == inside.roles != found.roles
    assert sum(found.shuffled_roles.values()) == len(found.components)
    again = ComponentRoles.measure(setting)
    assert again.roles == found.roles and again.shuffled_roles == found.shuffled_roles


def test_an_untrained_model_has_no_more_roles_than_a_shuffled_one(gpt2):
    """Its weights are random as they are: no head of it writes what its rules ask for."""
    drawn = ComponentRoles.measure(setting_of(gpt2))
    for counts in (drawn.roles, drawn.shuffled_roles):
        assert sum(counts.values()) == len(components(gpt2))
        assert not {"next member", "copy", *roles.MLP_ROLES} & set(counts)


def test_how_often_chance_gives_a_role_is_told(found):
    heads = int(found.components["head"].notna().sum())
    made = replace(
        found,
        roles={"copy": 3, "transport to the end": 2, "promotes next member": 1},
        shuffled_roles={"transport to the end": 2, "none": 9},
    )
    said = figures.shuffled_told(made).data
    assert f"- {heads} heads: 5 have a role (3 copy, 2 transport to the end)" in said
    assert "with shuffled weights **2** (2 transport to the end)" in said
    assert "with shuffled weights **0** (none)" in said
    assert "No more frequent in the model than there: transport to the end." in said
    made = replace(made, shuffled_roles={})
    assert "Each role is more frequent in the model" in figures.shuffled_told(made).data


def test_attention_in_random_order_is_that_of_corrupted_prompts(gpt2):
    setting = setting_of(gpt2)
    corrupted = setting.sets().corrupted
    hook, seen = "blocks.0.attn.hook_pattern", {}
    with torch.no_grad():
        gpt2.bridge.run_with_hooks(
            corrupted.tokens, fwd_hooks=[(hook, lambda v, hook: seen.update(v=v.clone()))]
        )
    paid = [
        seen["v"][row, :, q, [m for m in at if m < q]].sum(-1)
        for row, at in enumerate(corrupted.member_positions.sort(-1).values.tolist())
        for q in at[1:]
    ]
    column = ComponentRoles.measure(setting).components["members_to_members_random"]
    np.testing.assert_allclose(column[: gpt2.n_heads], torch.stack(paid).mean(0), atol=1e-6)


def test_examples_lead_their_roles():
    table = pd.DataFrame(
        [
            ["0.0", "copy", True, -0.1],
            ["0.1", "copy", True, -0.9],
            ["1.0", "inhibition", True, -0.2],
            ["1.1", "none", True, -0.8],
            ["2.0", "transport to the end", False, -1.0],
            ["2.1", "", False, -0.5],
        ],
        columns=["component", "role", "in_circuit", "ablation"],
    )
    orders = [["0.1"], ["0.1", "1.0"], ["0.0", "0.1", "1.0"], ["0.0", "0.1", "1.0", "1.1"]]
    orders += [[*orders[-1], "2.0"], [*orders[-1], "2.0", "2.1"]]
    assert [chapter._examples(table, n) for n in range(1, 7)] == orders


def test_patterns_are_those_of_the_examples(found):
    assert found.patterns.shape == (3, len(found.tokens), len(found.tokens))
    np.testing.assert_allclose(found.patterns.sum(-1), 1, atol=1e-5)
    table = found.components.set_index("component")
    assert "1.1" in found.examples  # the only head of the circuit with the role
    assert found.marked[-1] == len(found.tokens) - 1
    assert {found.tokens[i].strip() for i in found.marked[::2]} >= {"in"}
    axes = figures.attention_patterns(found).axes[:3]
    titles = [axis.get_title() or axis.get_title(loc="left") for axis in axes]
    assert titles == [f"{name}: {table.loc[name, 'role']}" for name in found.examples]


DRAWN = [name for name in vars(figures) if name.endswith(("_map", "_scatter", "_steps"))]
DRAWN += ["attention_patterns"]
TOLD = [name for name in vars(figures) if name.endswith("_told")]
TASK = {"ov_told": ("months",)}


def test_everything_is_drawn_and_told(found):
    assert len(DRAWN) == 5 and len(TOLD) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in DRAWN:
            assert isinstance(getattr(figures, name)(found), Figure)
        said = {name: getattr(figures, name)(found, *TASK.get(name, ())).data for name in TOLD}
        assert list(figures.roles_table(found).index) == ["1.1", "mlp1"]
    heads = found.components[found.components["head"].notna()]
    far = (heads["end_to_members"] >= max(0.2, 1.5 * found.spread["end_to_members"])).sum()
    assert f"Of all {len(heads)} heads, **{far}** look from the end" in said["attention_told"]
    assert "(copy 11.1%)" in said["ov_told"] and "**0** for next, 1 for copy" in said["ov_told"]
    low = heads.set_index("component")["direct_last"].idxmin()
    assert f"Head **{low}** writes most against the last member" in said["direct_told"]
    assert said["lens_told"].startswith("**MLP 1** adds most to the answer (+")
    assert said["roles_told"].startswith(
        "The circuit's 2 heads: **1 copy, 1 none**. Its 1 MLP: 1 promotes next member."
    )
    assert figures.numbers(found) == {"head-roles": "1 copy, 1 none"}


def test_the_table_of_rules_names_every_role_and_threshold(found):
    table = figures.rules_table(found).reset_index()
    assert tuple(table["role"]) == (*roles.HEAD_ROLES, *roles.MLP_ROLES)
    text = " ".join(table.astype(str).to_numpy().ravel())
    shares = found.thresholds["ov_share"]
    others = [v for name, v in found.thresholds.items() if name != "ov_share"]
    assert len(others) == 6 and all(f"{v:g}" in text for v in others) and f"{shares:.0%}" in text


@pytest.mark.parametrize(
    ("lacks", "missing"),
    [
        ("values", {"ov"}),
        ("shares", HEADS),
        ("between", MLPS),
        ("readout", HEADS | MLPS),
    ],
)
def test_what_cannot_be_told_leaves_the_rest(
    setting, found, planted, monkeypatch, tmp_path, lacks, missing
):
    known = capabilities.wiring(planted)
    lacking = replace(known, lacks=frozenset({lacks}))
    (key,) = planted.measured
    monkeypatch.setitem(planted.measured, key, lacking)
    part = ComponentRoles.measure(setting)
    assert set(part.missing) == missing
    reason = capabilities.REASONS[lacks]
    assert all(reason in text and "\n" not in text for text in part.missing.values())

    table, whole = (t.components.set_index("component") for t in (part, found))
    is_head, untold = whole["head"].notna(), pd.Series(False, whole.index)
    untold |= is_head & bool(missing & HEADS)
    untold |= ~is_head & bool(missing & MLPS)
    assert (table["role"] == whole["role"].where(~untold, "")).all()
    assert table.loc[untold, ["confidence", "rival_share"]].isna().to_numpy().all()
    assert not table["end_to_members"][is_head].isna().any()  # attention is there all the same
    with pytest.raises(UserError, match=reason):
        part.by_component()
    assert sum(part.roles.values()) == (~untold).sum()
    assert (part.absent_head_roles is None) == bool(missing & HEADS)
    part.save(tmp_path / "months")
    part = ComponentRoles.load(tmp_path / "months")
    evidence = Evidence(tmp_path)  # what claims read: nothing is taken for a role or a zero
    with pytest.raises(UserError, match="cannot tell all roles"):
        evidence.roles("months")
    for section in missing & {"ov", "lens"}:
        with pytest.raises(UserError, match="has no rows"):
            evidence.table(f"05_component_roles.{section}.csv", "months")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, section in {"ov_scatter": "ov", "lens_steps": "lens"}.items():
            assert isinstance(getattr(figures, name)(part), Figure) == (section not in missing)
        for name in ("attention_map", "role_map", "attention_patterns"):
            assert isinstance(getattr(figures, name)(part), Figure)
        figures.roles_table(part)
        for name in TOLD:
            section = name.removesuffix("_told")
            refused = section in missing or section in ("roles", "shuffled")
            said = getattr(figures, name)(part, *TASK.get(name, ())).data
            assert (said.startswith("Not here: ") and reason in said) == refused
    assert ("not told" in figures.numbers(part)["head-roles"]) == bool(missing & HEADS)


def test_ordinals_are_asked_for_where_they_reach(found):
    assert set(found.ov["words"]) == {"members", "ordinals"}
    assert len(writes.ORDINALS) == 12
    counts = found.ov.groupby(["input", "words", "score"]).size()
    assert len(counts) == 12 and counts.nunique() == 1

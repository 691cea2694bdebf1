"""Patching as a chapter, against plain passes; strongest heads of one layer have no paths."""

import dataclasses

import numpy as np
import pytest
from IPython.display import Markdown
from matplotlib.figure import Figure
from oracles import plain_logits

from seqcirc_utils.ablation import screening
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.chapters import patching
from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.components import Component, components
from seqcirc_utils.figures import patching as figures

PARAMETERS = {"task": "months", "templates": ["born"], "n_prompts": 4, "n_means": 4, "seed": 2}
PARAMETERS |= {"n_exact": 64}


@pytest.mark.parametrize("n_top", [1, 12])
def test_strongest_heads_of_one_layer_leave_the_rest(gpt2, monkeypatch, n_top):
    # A random model cannot do the task.
    monkeypatch.setattr(patching, "positive_baseline", lambda values, what: values.mean().item())
    at = Setting(PARAMETERS | {"n_top": n_top, "n_pairs": 1}, model=gpt2)
    found = patching.Patching.measure(at)
    assert len(found.exact) == n_top
    if n_top == 1:
        assert found.missing == {"paths": "the strongest heads are all of one layer."}
        shown = figures.path_map(found)
        assert isinstance(shown, Markdown) and "of one layer" in shown.data
    else:  # all heads
        assert found.missing == {} and len(found.paths) == 3 * n_paths(found)
        assert isinstance(figures.path_map(found), Figure)
    assert isinstance(figures.position_map(found), Figure)


def n_paths(found):
    """Pairs of a sender and a head of a later layer."""
    senders = {name: int(name.split(".")[0]) for name in found.paths["sender"]}
    return sum(4 * (2 - layer) for layer in senders.values())


@pytest.fixture(scope="module")
def measured(gpt2):
    """Findings on a random model, and the run they are of."""
    with pytest.MonkeyPatch.context() as patch:  # a random model cannot do the task
        patch.setattr(patching, "positive_baseline", lambda values, what: values.mean().item())
        at = Setting(PARAMETERS | {"n_top": 3, "n_pairs": 2}, model=gpt2)
        return patching.Patching.measure(at), at


@pytest.mark.parametrize("name", ["0.1", "1.3", "mlp0", "mlp2"])
def test_effects_are_those_of_plain_passes(measured, gpt2, name):
    found, at = measured
    sets, component = at.sets(), Component.parse(name)
    row = components(gpt2).index(component)
    intact = difference(gpt2, sets.evaluation, sets.evaluation)
    gone = difference(gpt2, sets.evaluation, sets.evaluation, [component], at.means())
    ablation = ((gone - intact) / intact.mean()).numpy()
    assert found.ablation[row] == pytest.approx(ablation, abs=1e-4) and abs(ablation).max() > 1e-3
    # Patching: what the clean run wrote is put into the corrupted one, on the first pairs.
    clean, corrupted = sets.evaluation[[0, 1]], sets.corrupted[[0, 1]]
    worse = difference(gpt2, corrupted, clean)
    restored = difference(gpt2, corrupted, clean, [component], record(gpt2, clean).activations)
    gap = intact[:2].mean() - worse.mean()
    patched = ((restored - worse) / gap).numpy()
    loose = 1e-3 * float(abs(patched).max()) + 1e-4  # the gap may be small
    assert found.patching[row] == pytest.approx(patched, abs=loose)
    effects = found.effects.set_index("component").loc[name]
    assert effects["ablation"] == pytest.approx(ablation.mean(), abs=1e-4)
    assert effects["patching"] == pytest.approx(patched.mean(), abs=loose)
    assert effects["ablation_low"] <= effects["ablation"] <= effects["ablation_high"]


def test_the_strongest_are_looked_at_by_position(measured, gpt2):
    found, at = measured
    strength = found.effects.set_index("component")[["ablation", "patching"]].abs().sum(axis=1)
    assert set(found.exact["component"]) == set(strength.nlargest(3).index)
    clean, corrupted = at.sets().evaluation[[0, 1]], at.sets().corrupted[[0, 1]]
    name, end = found.exact["component"][0], clean.groups()["end"]
    worse = difference(gpt2, corrupted, clean)
    gap = difference(gpt2, clean, clean).mean() - worse.mean()
    own = record(gpt2, clean).activations
    restored = difference(gpt2, corrupted, clean, [Component.parse(name)], own, end)
    recovered = ((restored - worse).mean() / gap).item()
    shown = found.exact.set_index("component").loc[name, "end"]
    assert shown == pytest.approx(recovered, abs=1e-3 * abs(recovered) + 1e-4)


def difference(model, prompts, asked, *replaced):
    """Logit differences ``[n]`` of plain passes, by the answers of ``asked``."""
    logits, rows = plain_logits(model, prompts, *(replaced or ([], None))), range(len(prompts))
    return logits[rows, asked.answer_ids] - logits[rows, asked.last_ids]


def test_what_matters_little_is_ablated_on_the_first_prompts(measured, gpt2, monkeypatch):
    every, at = measured
    assert every.effects["n_ablated"].eq(4).all()
    assert "were ablated on" not in figures.effects_told(every).data
    monkeypatch.setattr(patching, "positive_baseline", lambda values, what: values.mean().item())
    monkeypatch.setattr(screening, "MATTERS", every.effects["ablation"].abs().quantile(0.7))
    few = Setting(at.parameters | {"n_exact": 2}, model=gpt2)
    few._sets = at._sets
    found = patching.Patching.measure(few)
    n = found.effects["n_ablated"].to_numpy()
    assert set(n) == {2, 4}
    assert (np.isnan(found.ablation).sum(1) == 4 - n).all()
    assert found.ablation[n == 4] == pytest.approx(every.ablation[n == 4], abs=1e-5)
    # What claims resample: no gap, exact where all prompts were ablated, and with the means told.
    assert found.values[n == 4] == pytest.approx(found.ablation[n == 4])
    assert found.values.mean(1) == pytest.approx(found.effects["ablation"].to_numpy(), abs=1e-5)
    columns = ["ablation", "ablation_low", "ablation_high"]
    same = every.effects.loc[n == 4, columns]
    assert found.effects.loc[n == 4, columns].to_numpy() == pytest.approx(same.to_numpy(), abs=1e-4)
    told = figures.effects_told(found).data
    assert f"{(n == 2).sum()} of the 15 components were ablated on 2 of 4 prompts" in told


def test_everything_is_drawn_and_told(measured):
    found, _ = measured
    for draw in (
        figures.effect_maps,
        figures.strongest_bars,
        figures.position_map,
        figures.estimate_scatter,
        figures.layer_map,
    ):
        assert isinstance(draw(found), Figure)
    effects = found.effects.set_index("component")
    heads = effects[effects["head"].notna()]["ablation"]
    best = figures.top_heads(found)
    assert best == heads.sort_values().index[:3].tolist()
    told = figures.effects_told(found).data
    assert f"The heads that matter most are {best[0]} ({heads[best[0]]:+.0%})" in told
    harmful = int((heads > figures.HARM).sum())
    assert f"*rises* by more than 2% when any one of {harmful} heads is ablated" in told
    assert f"Spearman **{found.position_spearman:.2f}**" in figures.estimate_told(found).data
    strong = int((effects["ablation"] < -0.1).sum())
    first = figures.headline(found).data
    assert f"any one of {strong} of the {len(effects)} components is ablated" in first
    calm = dataclasses.replace(found, effects=found.effects.assign(ablation=-0.05))
    assert "No single component's ablation costs a tenth" in figures.headline(calm).data

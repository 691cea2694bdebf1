"""The chapter on interchange, on a random model of two tasks: kept, told and drawn."""

import dataclasses
import re

import kept
import numpy as np
import pandas as pd
import pytest
from IPython.display import Markdown
from matplotlib.figure import Figure

from seqcirc_utils.chapters import interchange as chapter
from seqcirc_utils.chapters.interchange import Interchange
from seqcirc_utils.components import Component
from seqcirc_utils.errors import CannotDo
from seqcirc_utils.figures import interchange as figures

PARAMETERS = {
    **{"tasks": ["number_words", "months"], "templates": ["born"], "n_prompts": 6, "n_means": 4},
    **{"n_swapped": 4, "layer_step": 1, "n_swapped_random": 2, "das_rank": 2, "das_epochs": 1},
    "seed": 0,
}
CIRCUITS = {
    "number_words": {Component(0, 1), Component(1, 0), Component(1, 2)},
    "months": {Component(0, 1), Component(1, 0), Component(0, None)},
}
SENTENCES = (figures.headline, figures.layers_told, figures.heads_told, figures.subspace_told)
DRAWN = (figures.layer_curves, figures.pair_grid, figures.head_bars)


def setting(model, circuits=CIRCUITS, **changes):
    return kept.setting(PARAMETERS | changes, model, circuits)


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    where = tmp_path_factory.mktemp("found")
    return kept.kept_and_read(Interchange.measure(setting(tiny["gpt2"])), where)


def test_every_pair_layer_and_kind_is_there_once(found, tiny):
    layers = tiny["gpt2"].n_layers
    counts = found.layers.groupby(["kind", "half"]).size()
    assert (counts["raw"] == 4 * (layers + 1)).all() and (
        counts["deviation"] == counts["raw"]
    ).all()
    assert (counts["placebo"] == 2 * (layers + 1)).all()  # one source will do
    keys = ["source", "base", "half", "layer", "kind"]
    assert not found.layers.duplicated(keys).any() and (found.layers["n"] == 2).all()


def test_shares_are_of_all_prompts(found):
    for table in (found.layers, found.heads, found.subspace):
        if len(table):
            outcomes = table[["wanted", "own", "token", "other"]]
            assert ((outcomes >= 0) & (outcomes <= 1)).all(axis=None)
            assert np.allclose(outcomes.sum(axis=1), 1)  # each prompt says one thing
            assert (table["wanted_low"] <= table["wanted"]).all()
            assert (table["shift_low"] <= table["shift"] + 1e-9).all()


def test_sets_are_those_of_the_circuits(found):
    assert found.shared == ["0.1", "1.0"]
    sizes = found.heads.groupby("set")["n_heads"].unique().map(list).to_dict()
    assert sizes["shared heads"] == [2] and sizes["head 0.1"] == [1] == sizes["head 1.0"]
    own = found.heads[found.heads["set"] == "own heads"]
    assert own["base"].unique().tolist() == ["number_words"] and (own["n_heads"] == 1).all()
    random = found.heads[found.heads["set"] == "random heads"]
    assert (random["n"] == 4).all() and (random["n_heads"] == 2).all()
    assert found.tests["base"].tolist() == ["months", "number_words"]


def test_the_test_is_of_shared_heads_against_random_ones(tiny, monkeypatch):
    """Shifts that are planned: shared heads move every prompt further than random ones."""
    import torch

    class Planned(chapter.Swap):
        def heads(self, heads, kind):
            outcome = super().heads(heads, kind)
            gain = 3.0 if set(heads) == {Component(0, 1), Component(1, 0)} else 1.0
            steps = gain + 0.1 * torch.arange(len(self.pairs))
            moved = {**self.intact.log_prob, "wanted": self.intact.log_prob["wanted"] + steps}
            return dataclasses.replace(outcome, log_prob=moved)

    monkeypatch.setattr(chapter, "Swap", Planned)
    found = Interchange.measure(
        setting(tiny["gpt2"], das_epochs=0, n_swapped=6, n_swapped_random=39)
    )
    rows = found.tests
    assert rows["shift"].tolist() == pytest.approx([3.25] * 2)
    assert rows["random"].tolist() == pytest.approx([1.25] * 2)
    assert rows["p"].tolist() == pytest.approx([1 / (rows["draws"].iloc[0] + 1)] * 2)
    assert found.missing == {"subspace": "das_epochs is 0: no directions were looked for."}
    told = figures.heads_told(found).data
    assert "random ones (q < 0.05): 2 of 2: number words into months (q = 0.0" in told


def test_the_layer_is_chosen_on_other_prompts_than_it_is_judged_on():
    rows = [
        {"source": "a", "base": "b", "kind": kind, "half": half, "layer": layer}
        | {"wanted": wanted, "shift": 0.0}
        for kind, half, layer, wanted in (
            *(("deviation", "choosing", i, w) for i, w in enumerate((0.1, 0.4, 0.3))),
            *(("deviation", "judging", i, w) for i, w in enumerate((0.9, 0.0, 0.0))),
            *(("raw", "choosing", i, w) for i, w in enumerate((0.9, 0.0, 0.0))),
        )
    ]
    table = pd.DataFrame(rows)
    assert chapter._best(table) == 1
    assert chapter._best(table.assign(wanted=0.0)) is None
    assert chapter._best(table.assign(source="b")[:0]) is None


def test_it_is_told_and_drawn_with_and_without_a_layer(found):
    for best in (1, None):
        shown = dataclasses.replace(found, best=best)
        assert all(isinstance(tell(shown), Markdown) for tell in SENTENCES)
        assert all(isinstance(draw(shown), Figure | Markdown) for draw in DRAWN)
        told = figures.numbers(shown)
        assert told["interchange-layer"] == ("none" if best is None else "1")
        shares = [told[f"interchange-{name}"] for name in ("across", "same", "placebo")]
        shares += [told["interchange-shared-heads"]] if best else []
        assert all((v == "none") == (best is None) for v in shares)
        for share in shares if best else ():
            mean, low, high = map(int, re.fullmatch(r"(\d+)% \[(\d+), (\d+)\]", share).groups())
            assert 0 <= low <= mean <= high <= 100 and low < high
    assert "Before block 1 of" in figures.headline(dataclasses.replace(found, best=1)).data
    rows = found.layers.query("layer == 1 and half == 'judging' and kind == 'deviation'")
    rows = (
        100 * rows[rows["source"] != rows["base"]][["wanted", "wanted_low", "wanted_high"]].mean()
    )
    told = figures.numbers(dataclasses.replace(found, best=1))["interchange-across"]
    assert told == "{:.0f}% [{:.0f}, {:.0f}]".format(*rows)
    assert "At no layer" in figures.headline(dataclasses.replace(found, best=None)).data


def test_the_head_that_moves_the_answer_most_is_named(found):
    rows = found.heads.assign(shift=0.0)
    names = [name for name in rows["set"].unique() if name.startswith("head ")]
    assert len(names) > 1
    rows.loc[rows["set"] == names[-1], "shift"] = 2.5
    told = figures.heads_told(dataclasses.replace(found, heads=rows)).data
    assert f"- of these alone, {names[-1]} most: gain +2.50 nats" in told


def test_the_first_page_s_picture_is_written_in_both_forms(found, tmp_path):
    figures.save_curves(found, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"interchange.svg", "interchange.narrow.svg", "interchange.png"}


def test_tasks_without_a_common_head_or_a_circuit(tiny):
    apart = {"number_words": {Component(0, 1)}, "months": {Component(1, 0)}}
    found = Interchange.measure(setting(tiny["gpt2"], apart, das_epochs=0))
    assert found.heads.empty and found.missing["heads"] == "no head is in all circuits."
    assert "no head is in all circuits" in figures.heads_told(found).data
    with pytest.raises(CannotDo, match="Fewer than two tasks"):
        Interchange.measure(setting(tiny["gpt2"], {"months": CIRCUITS["months"]}))


def test_all_directions_together_are_the_raw_swap(tiny, monkeypatch):
    """On a random model no layer gives a wanted answer, so one is chosen for it."""
    monkeypatch.setattr(chapter, "_best", lambda layers: 1)
    model = tiny["gpt2"]
    found = Interchange.measure(setting(model, das_rank=model.facts.d_model))
    rows = found.subspace
    assert (rows["fitted"] == "number_words to months").all() and len(rows) == 2 * 4
    raw = found.layers[(found.layers["kind"] == "raw") & (found.layers["layer"] == 1)]
    expected = raw.groupby(["source", "base"])["shift"].mean()  # the halves are of one size
    for _, part in rows.groupby("directions"):
        shifts = part.set_index(["source", "base"])["shift"]
        pd.testing.assert_series_equal(shifts, expected, check_like=True, atol=1e-4, rtol=1e-3)
    assert expected.abs().max() > 1e-3
    told = figures.subspace_told(found).data
    assert f"{found.rank} directions before block 1, found on number words into months" in told
    assert told.count("on the pair they were fitted on (other prompts)") == 2


def test_few_directions_of_a_search_are_told_beside_random_ones(tiny, monkeypatch):
    monkeypatch.setattr(chapter, "_best", lambda layers: 1)
    found = Interchange.measure(setting(tiny["gpt2"]))
    shift = found.subspace.set_index(["directions", "source", "base"])["shift"]
    assert abs(shift["found"] - shift["random"]).max() > 1e-4
    assert found.rank == 2 and found.missing == {}

"""The published procedure with its faults, held to numbers that the released code gave.

``published_data/README.md`` says how these were obtained.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from seqcirc_utils import store
from seqcirc_utils.ablation import replay
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.released import shifted_means
from seqcirc_utils.ablation.released_edges import PIECES, ReleasedEdges
from seqcirc_utils.circuits import released, search
from seqcirc_utils.components import Component, Edge
from seqcirc_utils.models import loading
from seqcirc_utils.prompts.prompts import Prompts

DATA = Path(__file__).parent / "published_data"
CASES = ["3x4", "6x6"]


def saved(name, directory, tokenizer):
    """A small trained model of GPT-2's architecture, as ``save_pretrained`` writes it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, heads = map(int, name.split("x"))
    weights = {k: v.float() for k, v in load_file(DATA / f"{name}.safetensors").items()}
    d_model = weights["transformer.wte.weight"].shape[1]
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=24,
        n_embd=d_model,
        n_layer=layers,
        n_head=heads,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def prompts(numbers, rows):
    """Prompts of which only tokens, answers and last members are known."""
    n, nothing = len(numbers[rows]), torch.empty(0)
    ids = {f"{k}_ids": torch.tensor(numbers[f"{k}s"]) for k in ("answer", "last")}
    lists = ("members", "answers", "starts", "templates", "fillers")
    return Prompts(
        task="months",
        texts=[""] * n,
        tokens=torch.tensor(numbers[rows]),
        member_positions=nothing,
        in_positions=nothing,
        **ids,
        **dict.fromkeys(lists, [None] * n),
    )


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, tokenizer):
    """A model, its prompts, and what the released code found."""
    name = request.param
    numbers = store.read_json(DATA / f"{name}.json")
    model = loading.load(str(saved(name, tmp_path_factory.mktemp(name), tokenizer)), "cpu")
    corrupted = replay.record(model, prompts(numbers, "corrupted"))
    means = corrupted.activations.mean()
    return SimpleNamespace(
        numbers=numbers,
        corrupted=corrupted,
        evaluator=Evaluator(model, prompts(numbers, "clean"), means),
        nodes={Component(layer, head) for layer, head in numbers["heads"]}
        | {Component(layer, None) for layer in numbers["mlps"]},
    )


def edges_of(case, which=PIECES):
    """The edge step on the released circuit, with the released means."""
    (outside,) = case.evaluator.outside([case.nodes])
    means = shifted_means(case.evaluator.replacement, case.corrupted, outside)
    return ReleasedEdges(case.evaluator.with_(replacement=means), case.nodes, case.corrupted, which)


def test_the_whole_model_scores_the_same(case):
    found = case.evaluator.intact.logit_diff.mean().item()
    assert found == pytest.approx(case.numbers["whole"], abs=1e-4)


def test_the_node_search_with_its_fault_is_the_released_one(case):
    """Every trial in order, its score and what became of it, and the circuit at the end."""
    found = search.sweep(case.evaluator, case.numbers["threshold"], corrupted=case.corrupted)
    expected = case.numbers["trials"]
    ours = [[s["phase"], s["component"], s["removed"]] for s in found.steps]
    assert ours == [[phase, name, gone] for phase, name, _, gone in expected]
    scores = [s["score"] for s in found.steps]
    assert scores == pytest.approx([score for _, _, score, _ in expected], abs=1e-4)
    assert found.components == case.nodes


def test_closest_calls_are_scored_as_the_released_search_scores_them(case):
    """Its own trials, given as the sweep's: the scores that the released code gave come back."""
    expected, threshold = case.numbers["trials"], case.numbers["threshold"]
    steps = [
        {"phase": phase, "component": name, "score": score, "removed": gone}
        for phase, name, score, gone in expected
    ]
    table = released.closest_calls(case.evaluator, case.corrupted, steps, threshold, n=5)
    assert len(table) == 6 and table["component"].iloc[-1] == ""
    assert table["released"].to_numpy() == pytest.approx(table["meant"].to_numpy(), abs=1e-4)
    nearest = sorted(abs(step["score"] - threshold) for step in steps)[:5]
    assert sorted(abs(table["meant"][:-1] - threshold)) == pytest.approx(nearest)
    assert not table["differs"].any()


def test_the_shift_of_means_is_told_of_the_sweep_as_meant(case):
    threshold = case.numbers["threshold"]
    plain = search.sweep(case.evaluator, threshold)
    table = released.closest_calls(case.evaluator, case.corrupted, plain.steps, threshold, n=5)
    shift = (table["released"] - table["meant"]).abs()
    assert shift.max() > 0.001
    assert table["meant"].iloc[-1] == plain.score
    as_released = table["released"] >= threshold
    assert (table["differs"] == ((table["meant"] >= threshold) != as_released)).all()


def test_the_edge_step_as_released_gives_the_released_scores(case):
    circuit = edges_of(case)
    assert set(map(str, circuit.edges)) == set(case.numbers["edges"])
    whole = case.evaluator.intact.logit_diff.mean()
    own = (circuit.score.mean() / whole).item()
    assert own == pytest.approx(case.numbers["circuit_score"], abs=1e-4)
    scores = (circuit.without(circuit.edges) / whole).tolist()
    found = dict(zip(map(str, circuit.edges), scores, strict=True))
    assert found == pytest.approx(case.numbers["edges"], abs=1e-4)


@pytest.mark.parametrize("case", ["3x4"], indirect=True)
def test_each_piece_is_needed_for_that(case):
    whole = case.evaluator.intact.logit_diff.mean()
    for piece in PIECES:
        circuit = edges_of(case, set(PIECES) - {piece})
        if piece == "own layer":
            assert len(circuit.edges) > len(case.numbers["edges"])
            continue
        scores = (circuit.without(circuit.edges) / whole).tolist()
        off = [
            abs(score - case.numbers["edges"][str(edge)])
            for edge, score in zip(circuit.edges, scores, strict=True)
        ]
        assert max(off) > 0.003, piece


def test_the_table_counts_what_each_piece_keeps(case):
    threshold = case.numbers["threshold"]
    table = released.edge_step_by_piece(
        case.evaluator, case.nodes, case.corrupted, threshold, screen=0
    ).set_index("edges")
    released_keeps = {Edge.parse(e) for e, s in case.numbers["edges"].items() if s < threshold}
    last = table.loc["all of these, as released (with B34)"]
    assert last["kept by the code"] == len(released_keeps)
    assert last["candidates"] == len(edges_of(case, ()).edges)
    untried = table.loc["head into its layer's MLP: not tried"]
    assert untried["kept by the code"] == 0
    assert untried["judged differently"] == untried["kept as meant"] <= untried["candidates"]
    b13 = table.loc["MLP into logits (B13)"]
    assert b13["candidates"] == len([c for c in case.nodes if c.head is None])


def test_only_edges_out_of_the_asked_senders_are_tried(case):
    threshold, mlp = case.numbers["threshold"], next(c for c in case.nodes if c.head is None)
    given = case.evaluator, case.nodes, case.corrupted, threshold
    table = released.edge_step_by_piece(*given, senders=[mlp], screen=0).set_index("edges")
    last = table.loc["all of these, as released (with B34)"]
    assert last["candidates"] == sum(e.sender == mlp for e in edges_of(case, ()).edges)
    assert table.loc["from heads: MLPs computed anew", "candidates"] == 0

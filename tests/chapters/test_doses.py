"""Damage by dose, on models built by hand where it is known whose heads every task needs."""

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from oracles import plainly

from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.chapters import doses
from seqcirc_utils.chapters.ranked_tasks import OUTSIDE, REPEAT, SEQUENCES, Task, Tried
from seqcirc_utils.errors import CannotDo
from seqcirc_utils.methods.registry import by_prompt
from seqcirc_utils.models.loading import Facts, Model, bridged
from seqcirc_utils.planted import building
from seqcirc_utils.prompts.prompts import Prompts

KINDS = {"a": SEQUENCES, "b": SEQUENCES, "c": REPEAT, "d": OUTSIDE}
SIZES = (1, 2, 3)
"""How strong a task's mark can be."""
HEADS = {"a": "0.0", "b": "0.1", "c": "1.0", "d": "1.1"}
GENERAL = "2.0"
PLAIN = 3
"""The token that says nothing."""


def _mark(task: str, size: int) -> int:
    return PLAIN + 1 + list(KINDS).index(task) * (len(SIZES) + 1) + SIZES.index(size)


def _answer(task: str) -> int:
    return PLAIN + 1 + list(KINDS).index(task) * (len(SIZES) + 1) + len(SIZES)


@torch.no_grad()
def built(own: float, general: float) -> Model:
    """Every task's answer is raised by a head of its own and by one head for all tasks.

    All heads look everywhere alike. So a prompt with a mark of size m among four tokens has the
    logit difference m (own + general) / 4, and each head's share of it is known.
    """
    half, shape = 12, SimpleNamespace(d_model=24, half=12)
    words = building.word_tokenizer()
    hf = building._blank(shape, words, neurons=1)
    marks, answers = hf.transformer.wte.weight, hf.lm_head.weight
    for i, task in enumerate(KINDS):
        for size in SIZES:
            marks[_mark(task, size), i] = size
            marks[_mark(task, size), i + half] = -size  # the mean stays 0
        answers[_answer(task), 4 + i] = 0.5
        answers[_answer(task), 4 + i + half] = -0.5
    width = shape.d_model // building.N_HEADS

    def head(name: str, reads: list[int], gain: float) -> None:
        layer, number = map(int, name.split("."))
        block, first = hf.transformer.h[layer].attn, number * width
        for i in reads:
            block.c_attn.weight[i, 2 * shape.d_model + first + i] = 1.0
            block.c_proj.weight[first + i, 4 + i] = gain
            block.c_proj.weight[first + i, 4 + i + half] = -gain

    for i, task in enumerate(KINDS):
        head(HEADS[task], [i], own)
    head(GENERAL, list(range(len(KINDS))), general)
    plain = building.word_tokenizer()
    plain.bos_token = None
    bridge, sizes = bridged("planted", hf, plain)
    empty = dict.fromkeys(("source", "sha256", "revision", "licence"), "")
    facts = Facts(
        **{"name": "hand", "title": "by hand", "dtype": "float32", "device": "cpu"},
        **{"n_parameters": 1, "prepend": None},
        **empty,
        **sizes,
    )
    return Model(bridge, words, facts, None)


def prompts(task: str, sizes, marked: bool = True) -> Prompts:
    marks = [_mark(task, size) if marked else PLAIN for size in sizes]
    tokens = torch.tensor([[0, mark, PLAIN, PLAIN] for mark in marks])
    n = len(marks)
    one = torch.zeros(n, 1, dtype=torch.long)
    return Prompts(
        **{"task": task, "texts": [""] * n, "tokens": tokens, "starts": [0] * n},
        **{"answer_ids": torch.full((n,), _answer(task)), "last_ids": torch.zeros(n).long()},
        **{"member_positions": one, "in_positions": one, "members": [()] * n},
        **{"answers": [""] * n, "templates": [""] * n, "fillers": [()] * n},
    )


class Asked(dict):
    """Parameters, and a model."""

    def __init__(self, parameters, model):
        super().__init__(parameters)
        self.model = model


def tried(own: float, general: float, ranks=(1, 3), **changes) -> Tried:
    """All four tasks, ranked by the method of the chapter."""
    model = built(own, general)
    parameters = {"share_ablated": 0.3, "n_specific_random": 2, "seed": 0} | changes
    found = Tried(Asked(parameters, model))
    for task, kind in KINDS.items():
        ranking, judging = prompts(task, ranks), prompts(task, (1, 2, 2, 3))
        means = record(model, prompts(task, (1,), marked=False)).activations.mean()
        unmarked = prompts(task, ranks, marked=False)
        scores = by_prompt(model, ranking, unmarked, method="EAP-IG inputs", n_steps=2)
        found.tasks[task] = Task(kind, Evaluator(model, judging, means), ranking, scores)
    return found


@pytest.fixture(scope="module")
def specific():
    some = tried(0.6, 0.4)
    return some, doses.measured(some)


@pytest.fixture(scope="module")
def general():
    some = tried(0.4, 0.6)
    return some, doses.measured(some)


def differences(found, dose, task=SEQUENCES, by=doses.BY_SETS, kind=doses.CIRCUIT):
    rows = found.index[(found.index["dose"] == dose) & (found.index["set"] == task)]
    rows = rows[(rows["by"] == by) & (rows["kind"] == kind)]
    return rows.set_index("against")[["mean", "low", "high"]]


def test_as_many_heads_as_the_share_and_powers_of_two_below():
    assert doses.numbers(0.05, 270) == [1, 2, 4, 8, 14]
    assert doses.numbers(0.2, 20) == [1, 2, 4]
    assert doses.numbers(0.01, 9) == [1]


def test_heads_of_ones_own_are_seen_to_be_specific(specific):
    """Each task's strongest head is its own: the others' cost it nothing."""
    _, found = specific
    assert found.dose == 1
    own = found.damage[(found.damage["dose"] == 1) & (found.damage["set"] == found.damage["task"])]
    own = own[own["kind"] == doses.CIRCUIT]
    assert own["task"].tolist() == list(KINDS) and own["mean"].tolist() == pytest.approx([0.6] * 4)
    rows = differences(found, 1)
    assert rows.loc[list(dict.fromkeys(KINDS.values())), "mean"].tolist() == pytest.approx(
        [0.6] * 3
    )
    assert (rows["low"] > 0).all()
    elsewhere = differences(found, 1, by=doses.BY_TASKS)
    assert elsewhere["mean"].tolist() == pytest.approx([0.6] * 3)
    assert rows.loc["d"].tolist() == rows.loc[OUTSIDE].tolist()  # the one outside task there is
    first = found.heads[found.heads["place"] == 1].set_index("task")["head"]
    assert first.to_dict() == HEADS
    # With two heads each, the one for all tasks is lost too: 100% against 40%.
    assert differences(found, 2).loc[OUTSIDE, "mean"] == pytest.approx(0.6)


def test_a_head_that_every_task_needs_is_seen_not_to_be(general):
    _, found = general
    assert found.dose == 1
    first = found.heads[found.heads["place"] == 1].set_index("task")["head"]
    assert first.to_dict() == dict.fromkeys(KINDS, GENERAL)
    for by in (doses.BY_SETS, doses.BY_TASKS):
        rows = differences(found, 1, by=by).drop(doses.RANDOM, errors="ignore")
        assert rows["mean"].tolist() == pytest.approx([0] * len(rows), abs=1e-6)
    own = found.damage.query("dose == 1 and kind == 'circuit'")["mean"]
    assert own.tolist() == pytest.approx([0.6] * len(own))
    # The second head is each task's own, and seen as that.
    assert differences(found, 2).loc[SEQUENCES, "mean"] == pytest.approx(0.4)


def test_every_number_is_that_of_plain_passes(specific):
    some, found = specific
    order = {task: doses._order(some, task) for task in KINDS}
    assert [str(c) for c in order["d"][:2]] == [HEADS["d"], GENERAL]
    seen = 0
    for row in found.damage[found.damage["kind"] == doses.CIRCUIT].itertuples():
        judge = some.tasks[row.task].judge
        made = some.at.model, judge.prompts
        whole = plainly(*made, [], judge.replacement).mean()
        left = plainly(*made, order[row.set][: row.dose], judge.replacement) / whole
        assert row.mean == pytest.approx(1 - left.mean().item(), abs=1e-5)
        seen += 1
    # Three doses on two sequence tasks, and the chosen one on the others, for four rankings.
    assert seen == 4 * (3 * 2 + 2)
    cells = found.damage[found.damage["kind"] == doses.CIRCUIT]
    cells = cells.set_index(["dose", "set", "task"])["mean"]
    for dose in (1, 2, 3):
        pair = cells[dose, "a", "a"] - cells[dose, "b", "a"]
        rows = differences(found, dose, "a")
        assert rows.loc[SEQUENCES, "mean"] == pytest.approx(pair)
    elsewhere = differences(found, 1, "a", doses.BY_TASKS)
    assert elsewhere.loc[OUTSIDE, "mean"] == pytest.approx(cells[1, "a", "a"] - cells[1, "a", "d"])


def test_random_heads_are_of_the_same_layers(specific):
    some, _ = specific
    order = {task: doses._order(some, task) for task in KINDS}
    sets = doses._sets(some, order, [1, 3])
    for (dose, task, kind), drawn in sets.items():
        layers = sorted(c.layer for c in order[task][:dose])
        assert all(sorted(c.layer for c in one) == layers for one in drawn), (dose, task, kind)
        assert len(drawn) == (1 if kind == doses.CIRCUIT else 2)
        assert all(c.head is not None for one in drawn for c in one)
    assert {task for _, task, kind in sets if kind == doses.RANDOM} == {"a", "b"}


class Unread:
    """Judging prompts that must not be looked at: their means are all that is given."""

    def __init__(self, replacement):
        self.replacement = replacement

    def __getattr__(self, name):
        raise AssertionError(f"{name} of the prompts that judge was read")


def test_the_choice_of_the_dose_reads_no_prompt_that_judges(specific):
    some, found = specific
    blind = dataclasses.replace(
        some,
        tasks={
            task: dataclasses.replace(one, judge=Unread(one.judge.replacement))
            for task, one in some.tasks.items()
        },
    )
    order = {task: doses._order(blind, task) for task in KINDS}
    chosen = doses._choice(blind, order, [1, 2, 3])
    pd.testing.assert_frame_equal(chosen, found.choice)
    assert set(chosen["task"]) == {"a", "b"}
    assert chosen["damage"].tolist() == pytest.approx([0.6, 1, 1] * 2)


def test_the_dose_follows_the_prompts_that_rank_and_no_others():
    some = tried(0.6, 0.4)
    for task in ("a", "b"):  # on which their heads do little: by these it would be another dose
        some.tasks[task].judge = some.tasks["c"].judge
    assert doses.measured(some).dose == 1
    idle = tried(0.6, 0.4)
    for one in idle.tasks.values():
        one.own[2] = one.own.max() + 1  # 0.2, which does nothing, is taken for the strongest
    found = doses.measured(idle)
    assert found.choice["damage"].tolist() == pytest.approx([0, 0.6, 1] * 2, abs=1e-6)
    assert found.dose == 2


def test_without_random_sets_and_without_anything_to_lose():
    bare = tried(0.6, 0.4, n_specific_random=0)
    found = doses.measured(bare)
    assert set(found.damage["kind"]) == {doses.CIRCUIT}
    assert doses.RANDOM not in set(found.index["against"])
    turned = tried(0.6, 0.4)
    for one in turned.tasks.values():
        asked = one.ranking
        one.ranking = dataclasses.replace(
            asked, answer_ids=asked.last_ids, last_ids=asked.answer_ids
        )
    with pytest.raises(CannotDo, match="something to lose"):
        doses.measured(turned)
    assert all("\n" not in why for why in turned.left_out.values()) and len(turned.left_out) == 2

"""Probes ask what they say, answers are scored token by token, and sets beside fair random ones."""

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ARCHITECTURES, save_tiny
from matplotlib.figure import Figure
from tokenizers_made import character_tokenizer

from seqcirc_utils.ablation import answers as answers_module
from seqcirc_utils.ablation import engine, readout
from seqcirc_utils.analyses import generalisation
from seqcirc_utils.circuits import chance
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError
from seqcirc_utils.figures import generalisation as generalisation_module
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import probes, questions
from seqcirc_utils.statistics import Tail, corrected

ALL = probes.probes()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def speller(request, tmp_path_factory):
    """A random model that reads and writes characters."""
    where = tmp_path_factory.mktemp("speller") / request.param
    return loading.load(str(save_tiny(request.param, where, character_tokenizer())), "cpu")


@pytest.fixture
def numbers():
    (probe,) = probes.probes(["plus_2"])
    return probe


def heads(*pairs):
    return [Component(*pair) for pair in pairs]


def test_numbers_and_sums_are_answered_rightly():
    steps = {"plus_1": 1, "plus_2": 2, "plus_3": 3, "plus_10": 10, "plus_100": 100}
    steps |= {"minus_1": -1, "minus_2": -2}
    seen = 0
    for probe in ALL:
        for question in probe.questions:
            answer = question.answer.strip()
            if probe.name in steps:
                shown = [int(n) for n in re.findall(r"\d+", question.context)]
                assert [b - a for a, b in zip(shown, shown[1:], strict=False)] == [
                    steps[probe.name]
                ] * 3
                assert int(answer) == shown[-1] + steps[probe.name]
                seen += 1
            elif probe.group == "arithmetic":
                *worked, asked = question.context.split(", ")
                facts = [*worked, f"{asked} {answer}"]
                for fact in facts:
                    a, sign, b, c = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", fact).groups()
                    assert int(c) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
                assert len(facts) == 3
                seen += 1
    assert seen > 500


def test_words_are_answered_rightly():
    after = {"one": 1, "two": 2, "three": 3}
    months = probes._MONTHS
    for probe in probes.probes(["month_after", "months_passing"]):
        for question in probe.questions:
            month, n = re.match(r"If it is (\w+) now, then (\w+) month", question.context).groups()
            expected = months[(months.index(month) + after[n]) % 12]
            assert question.answer.strip() == expected
    for probe in probes.probes(["date_after", "dates_passing"]):
        for question in probe.questions:
            month, day, n, again = re.fullmatch(
                r"Today is (\w+) (\d). In (\d) days? it will be (\w+)", question.context
            ).groups()
            assert month == again and int(question.answer) == int(day) + int(n) < 10
    (spanish,) = probes.probes(["spanish_months"])
    by_context = {q.context.partition(": ")[2]: q.answer for q in spanish.questions}
    assert by_context["enero, febrero, marzo, abril,"] == " mayo"
    assert by_context["octubre, noviembre, diciembre, enero,"] == " febrero"
    (down,) = probes.probes(["number_words_down"])
    assert {q.answer for q in down.questions if "nine, eight, seven, six," in q.context} == {
        " five"
    }


@pytest.mark.parametrize("probe", ALL, ids=lambda probe: probe.name)
def test_no_question_gives_its_answer_away_or_is_its_own_corruption(probe):
    assert len(probe.questions) == len(set(probe.questions)) >= questions.MIN_QUESTIONS
    for question in probe.questions:
        assert question.answer != question.wrong and question.corrupted != question.context
        assert question.answer.startswith(" ") and question.wrong.startswith(" ")
        assert question.wrong.strip() in question.context
        if probe.group in ("sequence", "interval", "descending", "language"):
            parts = [re.split(r"[:,] ?", t) for t in (question.context, question.corrupted)]
            assert sorted(parts[0]) == sorted(parts[1])
    assert 0 < probe.chance <= 0.2


def test_the_seed_decides_and_names_are_checked():
    assert probes.probes(["sum_1"], 0) == probes.probes(["sum_1"], 0)
    assert probes.probes(["sum_1"], 0) != probes.probes(["sum_1"], 1)
    with pytest.raises(UserError, match="unknown probe 'sum1'.*did you mean 'sum_1'"):
        probes.probes(["sum1"])


def test_batches_hold_the_questions_and_references_of_their_length(speller, numbers):
    fitted = questions.fit(speller, numbers, 30)
    assert len(fitted) == 30
    batches = questions.batches_of(fitted.right)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(30))
    corrupted = {q.corrupted + q.answer for q in numbers.questions}
    for batch in batches:
        for row, tokens in zip(batch.rows, batch.tokens.tolist(), strict=True):
            question = fitted.questions[row]
            assert tokens[0] == speller.prepend_id
            assert speller.tokenizer.decode(tokens[1:]) == question.context + question.answer
            assert batch.n_answer == len(question.answer)
        reference = fitted.references[batch.tokens.shape[1], batch.n_answer]
        assert reference.shape[0] > 1 and reference.shape[1] == batch.tokens.shape[1]
        assert {speller.tokenizer.decode(r[1:]) for r in reference.tolist()} <= corrupted
    part = fitted.only([4, 1])
    assert part.questions == (fitted.questions[4], fitted.questions[1])
    assert part.right == (fitted.right[4], fitted.right[1])


def test_what_the_tokenizer_cannot_hold_is_named(gpt2, numbers):
    # The word tokenizer of the other tests writes members, but no commas.
    with pytest.raises(UserError, match="can hold 0 questions of 'plus_2', 4 are needed"):
        questions.fit(gpt2, numbers, 8)
    row, fitted = generalisation.ability(gpt2, probes.probes(["french_months"])[0], 8)
    assert fitted is None and not row["used"] and row["n"] == 0 and np.isnan(row["accuracy"])
    assert "cannot write" in row["reason"] and "août" in row["reason"]


def slowly(model, fitted, removed, kind):
    """Each question by itself, token by token, whole passes with plain hooks."""
    correct, log_prob = [], []
    for (ids, n_answer), question in zip(fitted.right, fitted.questions, strict=True):
        tokens = torch.tensor([ids])
        reference = fitted.references[len(ids), n_answer]
        hooks = []
        for layer, head in removed:
            name = f"blocks.{layer}.attn.hook_z"
            seen = []
            model.bridge.run_with_hooks(
                reference, fwd_hooks=[(name, lambda z, hook, seen=seen: seen.append(z.clone()))]
            )
            new = seen[0].mean(0)[:, head] * (kind == "mean")

            def put(z, hook, head=head, new=new):
                z = z.clone()
                z[:, :, head] = new
                return z

            hooks.append((name, put))
        logits = model.bridge.run_with_hooks(tokens, fwd_hooks=hooks)[0].double()
        total, right = 0.0, True
        for place in range(len(ids) - n_answer, len(ids)):
            total += logits[place - 1].log_softmax(-1)[ids[place]].item()
            right &= logits[place - 1].argmax().item() == ids[place]
        following = model.tokenizer.decode([logits[-1].argmax().item()])
        correct.append(right and not following.isalnum())
        log_prob.append(total)
        assert question.answer == model.tokenizer.decode(list(ids[-n_answer:]))
    return torch.tensor(correct), torch.tensor(log_prob)


@pytest.mark.parametrize("kind", answers_module.KINDS)
@torch.no_grad()
def test_the_bench_agrees_with_plain_passes(speller, numbers, kind, hooks_left, monkeypatch):
    monkeypatch.setitem(engine.TOKENS, "cpu", 600)  # several batches
    fitted = questions.fit(speller, numbers, 6)
    bench = answers_module.Bench(speller, fitted, kind)
    before = hooks_left(speller)
    sets = [heads((0, 1), (2, 3)), heads((2, 0)), [], heads((1, 1), (1, 2), (0, 0)), heads((2, 0))]
    found = bench.ablated(sets)
    assert hooks_left(speller) == before
    for i, removed in enumerate(sets):
        correct, log_prob = slowly(speller, fitted, removed, kind)
        assert torch.equal(found.correct[i], correct)
        assert torch.allclose(found.log_prob[i], log_prob.float(), atol=1e-3)
    assert torch.equal(found.log_prob[2], bench.intact.log_prob[0])
    assert not torch.allclose(found.log_prob[0], found.log_prob[2], atol=1e-3)


@torch.no_grad()
def test_an_answer_is_right_only_whole_and_ended(speller, numbers, monkeypatch):
    fitted = questions.fit(speller, numbers, 1)
    batch = questions.batches_of(fitted.right)[0]
    truth = batch.tokens[0, -batch.n_answer :].tolist()
    ids = speller.tokenizer.convert_tokens_to_ids

    def correct(written):
        """Whether a model that writes these tokens, with certainty, is right."""
        logits = torch.full((len(written), len(speller.tokenizer)), -50.0)
        logits[range(len(written)), written] = 50.0
        monkeypatch.setattr(readout, "logits", lambda *a: logits[None])
        stream = torch.zeros(1, batch.tokens.shape[1], speller.facts.d_model)
        return answers_module.read(speller, batch, stream[None])[0].item()

    assert correct([*truth, ids(",")]) and correct([*truth, ids(" ")])
    assert not correct([*truth, ids("0")])  # the answer is another, longer number
    for place in range(len(truth)):
        other = truth.copy()
        other[place] = ids("=")
        assert not correct([*other, ids(",")])


def test_a_model_that_fails_is_told_so_with_its_reason(speller, numbers):
    row, fitted = generalisation.ability(speller, numbers, 8)
    assert fitted is None and not row["used"]
    assert row["n"] == 8 and row["accuracy"] == 0 and row["low"] == 0 < row["high"] < 1
    assert "not above chance (0.03)" in row["reason"]


def test_a_head_that_is_none_is_refused(speller, numbers):
    bench = answers_module.Bench(speller, questions.fit(speller, numbers, 2 + 2))
    for wrong in (Component(0, None), Component(3, 0), Component(0, 4)):
        with pytest.raises(UserError, match=f"{wrong} is not a head"):
            bench.ablated([[wrong]])
    with pytest.raises(UserError, match="unknown ablation 'media'"):
        answers_module.Bench(speller, bench.fitted, "media")


class Shape:
    """As much of a model as drawing heads asks for."""

    n_layers, n_heads = 12, 6


def test_random_sets_are_matched_in_size_and_layer():
    own = frozenset(heads((0, 1), (5, 2), (5, 3), (11, 0)))
    draws = chance.matched(Shape, own, 40, seed=3)
    assert len(draws) == len(set(draws)) == 40 and own not in draws
    for draw in draws:
        assert len(draw) == 4
        layers = sorted(c.layer for c in draw)
        assert all(abs(a - b) <= 2 for a, b in zip(layers, (0, 5, 5, 11), strict=True))
    assert {c.layer for d in draws for c in d} == {0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11}
    assert draws == chance.matched(Shape, own, 40, seed=3)
    assert draws[:10] == chance.matched(Shape, own, 10, seed=3)
    assert draws != chance.matched(Shape, own, 40, seed=4)


def test_there_are_only_so_many_different_random_sets():
    single = chance.matched(Shape, heads((5, 2)), 50)
    assert len(single) == 5 * 6 - 1 and frozenset(heads((5, 2))) not in single
    everything = heads(*((layer, head) for layer in range(12) for head in range(6)))
    assert chance.matched(Shape, everything, 3) == []


class Planned:
    """A bench whose answers are planned: a set's accuracy is the mean over ``worth``."""

    kind, model = "mean", Shape

    def __init__(self, worth):
        self.worth = worth
        probe = probes.Probe("p", "g", "t", ())
        self.fitted = questions.Fitted(probe, (None,) * 4, (), (), {})

    def answers(self, right):
        correct = torch.tensor([[i < n for i in range(4)] for n in right])
        return answers_module.Answers(correct, correct.float())

    def ablated(self, sets):
        """The intact model for an empty set; what a set is worth otherwise."""
        return self.answers([self.worth(frozenset(s)) if s else 4 for s in sets])


def test_a_set_is_compared_with_its_random_sets():
    bad = frozenset(heads((5, 2), (6, 1)))

    def worth(chosen):
        return 0 if chosen == bad else 2 + min(c.head for c in chosen) % 2

    sets = {"bad": bad, "none": [], "head": heads((1, 1)), "other": heads((1, 1), (4, 2))}
    found = generalisation.ablated(Planned(worth), sets, n_draws=19)
    row, head, other = (each.row() for each in found)
    draws = chance.matched(Shape, bad, 19)
    right = [worth(draw) / 4 for draw in draws]
    assert (row["accuracy_before"], row["accuracy_after"], row["retained"]) == (1, 0, 0)
    assert row["n_draws"] == 19 and row["random_mean"] == pytest.approx(np.mean(right))
    assert row["log_prob_change"] == -1
    assert row["random_log_prob_change"] == pytest.approx(np.mean(right) - 1)
    assert row["low"] == 0 < row["high"] < 1
    assert row["p"] == pytest.approx(Tail.of(1 - np.array(right)).p(1), rel=1e-5)
    assert row["p"] < 0.05 < other["p"] and other["set"] == "other"
    # One head is compared with none.
    assert head["n_draws"] == 0 and np.isnan(head["p"]) and np.isnan(head["random_mean"])
    # By question: the share of random sets that leave it right, less what the set leaves.
    expected = [np.mean([worth(draw) > i for draw in draws]) for i in range(4)]
    assert found[0].gaps().tolist() == pytest.approx(expected)


def test_planned_tests_pool_questions_and_pair_the_random_sets():
    bad = frozenset(heads((5, 2), (6, 1)))
    found = []
    for name, left in (("plus_1", 1), ("plus_2", 0), ("months", 0)):
        bench = Planned(lambda s, left=left: left if s == bad else 2 + min(c.head for c in s) % 2)
        bench.fitted = questions.Fitted(probes.Probe(name, "g", "t", ()), (None,) * 4, (), (), {})
        found += generalisation.ablated(bench, {"bad": bad, "head": heads((1, 1))}, n_draws=19)
    (row,) = generalisation.planned(found)
    assert (row["set"], row["subject"], row["probes"]) == ("bad", "other steps", "plus_1, plus_2")
    assert row["n"] == 8 and row["accuracy"] == 1 / 8 and row["loss"] == 7 / 8
    assert row["gap"] == pytest.approx(row["random"] - row["accuracy"])
    assert row["gap_low"] < row["gap"] < row["gap_high"]
    one = found[0].losses()[1]  # either probe has the same random sets
    assert row["random_loss"] == pytest.approx(one.mean())
    assert row["p"] == pytest.approx(Tail.of(one).p(7 / 8), rel=1e-5) and row["p"] < 0.01
    assert Tail.of(one).p(row["needed"]) == pytest.approx(0.05)


def test_four_questions_that_all_fail_leave_an_interval():
    bad = frozenset(heads((5, 2), (6, 1)))
    bench = Planned(lambda s: 0 if s == bad else 4)  # no random set harms, and the set harms all
    bench.fitted = questions.Fitted(probes.Probe("plus_1", "g", "t", ()), (None,) * 4, (), (), {})
    (row,) = generalisation.planned(generalisation.ablated(bench, {"bad": bad}, n_draws=19))
    # Of 0 right in 4 the exact 95% interval ends at 60% (any table), so 40 points are lost at least
    assert row["gap"] == row["gap_high"] == 1 and row["gap_low"] == pytest.approx(0.398, abs=1e-3)


def test_without_draws_there_is_no_p_value():
    found = generalisation.ablated(Planned(lambda s: 2), {"a": heads((1, 1), (2, 1))}, n_draws=0)
    row = found[0].row()
    assert row["n_draws"] == 0 and np.isnan(row["p"]) and np.isnan(row["random_mean"])
    assert generalisation.planned(found) == []


def test_p_values_are_corrected_for_all_tests():
    found = corrected(pd.Series([0.01, 0.04, np.nan, 0.03]))
    assert found.to_numpy() == pytest.approx([0.03, 0.04, np.nan, 0.04], nan_ok=True)
    assert corrected(pd.Series([np.nan])).isna().all()


def test_figures_say_what_the_tables_say():
    own = pd.DataFrame(
        {
            "probe": ["a", "b", "c"],
            "title": ["a", "b", "c"],
            "group": ["x", "x", "y"],
            "accuracy": [0.9, np.nan, 0.1],
            "low": [0.7, np.nan, 0.0],
            "high": [1.0, np.nan, 0.3],
            "chance": 0.1,
            "used": [True, False, False],
        }
    )
    effect = pd.DataFrame(
        {
            "probe": ["a", "a", "c", "c"],
            "set": ["s", "t"] * 2,
            "n_heads": [3, 1] * 2,
            "accuracy_before": 1.0,
            "accuracy_after": [0.0, 1.0, 0.5, 1.0],
            "random_mean": [0.9, 0.9, 0.7, np.nan],
            "q": [0.01, 1.0, 0.2, np.nan],
        }
    ).assign(kind="mean")
    found = SimpleNamespace(probes=own, effects=effect, missing={})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (
            generalisation_module.probe_accuracy(found),
            generalisation_module.effect_map(found, "mean"),
        )
        first.canvas.draw(), second.canvas.draw()
    assert isinstance(first, Figure) and [t.get_text() for t in first.axes[0].texts][1:] == [
        "x",
        "y",
    ]
    cells = [t.get_text() for t in second.axes[0].texts]
    assert cells == ["0.00*\n(0.90)", "1.00\n(0.90)", "0.50\n(0.70)", "1.00"]
    shown = second.axes[0].collections[0].get_array().reshape(2, 2)
    assert np.allclose(shown, [[-90, 10], [-20, 0]])


@pytest.mark.model
def test_the_default_model_counts_and_its_tokens_are_whole_answers(default_model):
    (probe,) = probes.probes(["minus_1"])
    row, fitted = generalisation.ability(default_model, probe, 6)
    assert row["used"] and row["accuracy"] >= 0.8 and row["logit_diff"] > 2
    assert {n_answer for _, n_answer in fitted.right} == {3}  # space, digit, digit

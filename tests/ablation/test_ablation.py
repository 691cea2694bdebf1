"""The fast evaluator against whole passes with plain hooks, on three architectures."""

import dataclasses
import random

import pytest
import torch
from oracles import plainly
from transformer_lens import patching

from seqcirc_utils.ablation import engine, paths, replay
from seqcirc_utils.ablation import evaluator as evaluator_module
from seqcirc_utils.ablation import pruning as pruning_module
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.prompts import scores as scores_module

CANDIDATES = [
    [Component(0, 1)],
    [Component(1, None)],
    [Component(2, 3)],
    [Component(0, 0), Component(1, 2), Component(1, None), Component(2, 1)],
    [Component(0, None), Component(2, None)],
    [],
]


def test_replacement_equals_whole_passes(any_tiny, sets):
    mean = replay.record(any_tiny, sets.means).activations.mean()
    resampled = replay.record(any_tiny, sets.corrupted).activations
    for replacement in (mean, resampled):
        evaluator = Evaluator(any_tiny, sets.evaluation, replacement, max_rows=13)
        fast = evaluator.replaced(CANDIDATES).logit_diff
        for found, names in zip(fast, CANDIDATES, strict=True):
            slow = plainly(any_tiny, sets.evaluation, names, replacement)
            torch.testing.assert_close(found, slow, atol=1e-5, rtol=1e-5)
    assert (fast[0] - fast[-1]).abs().max() > 1e-3  # replacing something changes something


def test_no_candidates_give_empty_scores(gpt2, sets, means):
    evaluator, n = Evaluator(gpt2, sets.evaluation, means["gpt2"]), len(sets.evaluation)
    for found in (evaluator.replaced([]), evaluator.kept([])):
        some = evaluator.replaced([[]])
        for name, value in vars(found).items():
            assert value.shape == (0, n) and value.dtype == getattr(some, name).dtype


def test_position_masks_equal_whole_passes(any_tiny, sets):
    replacement = replay.record(any_tiny, sets.corrupted).activations
    evaluator = Evaluator(any_tiny, sets.evaluation, replacement)
    masks = [sets.evaluation.groups()["member 4"], sets.evaluation.groups()["end"]]
    for names in ([Component(0, 1)], [Component(1, None), Component(2, 0)]):
        fast = evaluator.replaced([names, names], positions=masks).logit_diff
        for found, mask in zip(fast, masks, strict=True):
            slow = plainly(any_tiny, sets.evaluation, names, replacement, mask)
            torch.testing.assert_close(found, slow, atol=1e-5, rtol=1e-5)


def test_what_stands_before_a_change_is_not_computed_again(gpt2, sets, means, monkeypatch):
    """The MLPs of earlier positions; at the end alone, that is nearly all."""
    evaluator, n = Evaluator(gpt2, sets.evaluation, means["gpt2"]), len(sets.evaluation)
    rows, own = [], replay.Run.mlp

    def mlp(self, layer, stream):
        rows.append(tuple(stream.shape[:2]))
        return own(self, layer, stream)

    monkeypatch.setattr(replay.Run, "mlp", mlp)
    evaluator.replaced([[Component(0, 1)]], positions=[sets.evaluation.groups()["end"]])
    assert rows == [(n, 1)] * gpt2.n_layers


def test_a_model_that_reads_later_positions_is_run_in_whole_blocks(gpt2, sets, monkeypatch):
    own = replay.Run.attention

    def attention(self, layer, stream, act=None):  # that of the end is added to all
        found = own(self, layer, stream, act)
        return found + (stream - self.residual[layer, : len(stream)]).sum(1, keepdim=True)

    monkeypatch.setattr(gpt2, "measured", {})
    assert replay.record(gpt2, sets.evaluation).by_parts
    gpt2.measured.clear()
    monkeypatch.setattr(replay.Run, "attention", attention)
    assert not replay.record(gpt2, sets.evaluation).by_parts


def test_keeping_everything_is_the_model_and_keeping_nothing_replaces_all(gpt2, sets, means):
    evaluator = Evaluator(gpt2, sets.evaluation, means["gpt2"])
    everything = components(gpt2)
    kept = evaluator.kept([everything, []]).logit_diff
    whole = scores_module.score(gpt2, sets.evaluation).logit_diff
    torch.testing.assert_close(kept[0], whole, atol=1e-5, rtol=1e-5)
    slow = plainly(gpt2, sets.evaluation, everything, means["gpt2"])
    torch.testing.assert_close(kept[1], slow, atol=1e-5, rtol=1e-5)


def test_all_three_architectures_go_by_parts_and_whole_blocks_agree(any_tiny, sets, means):
    evaluator = Evaluator(any_tiny, sets.evaluation, means[any_tiny.facts.title])
    assert evaluator.run.by_parts
    by_parts = evaluator.replaced(CANDIDATES).logit_diff
    # What an architecture of another build gets.
    evaluator.run = dataclasses.replace(evaluator.run, by_parts=False)
    torch.testing.assert_close(
        evaluator.replaced(CANDIDATES).logit_diff, by_parts, atol=1e-5, rtol=1e-5
    )


def test_zero_ablation_writes_nothing(any_tiny, sets):
    nothing = replay.record(any_tiny, sets.means).activations.zero()
    evaluator = Evaluator(any_tiny, sets.evaluation, nothing)
    slow = plainly(any_tiny, sets.evaluation, CANDIDATES[3], nothing)
    fast = evaluator.replaced(CANDIDATES[3:4]).logit_diff[0]
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


def test_pruning_equals_whole_passes_whatever_the_order(any_tiny, sets, means):
    mean = means[any_tiny.facts.title]
    evaluator = Evaluator(any_tiny, sets.evaluation, mean)
    pruning = pruning_module.Pruning(evaluator)
    order = components(any_tiny)
    random.Random(1).shuffle(order)
    for i, component in enumerate(order):
        score = pruning.try_without([component])
        slow = plainly(any_tiny, sets.evaluation, [*pruning.removed, component], mean)
        torch.testing.assert_close(score, slow, atol=1e-5, rtol=1e-5)
        if i % 3:
            pruning.accept()
    again = pruning_module.Pruning(evaluator, pruning.removed)
    torch.testing.assert_close(again.score, pruning.score, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("component", ["0.0", "mlp0", "1.2", "mlp1", "2.1", "mlp2"])
def test_estimates_are_the_slope_of_a_small_replacement(any_tiny, sets, means, component):
    component = Component.parse(component)
    mean, small = means[any_tiny.facts.title], 1e-2
    # Out already: something above, so that the component's own value is that of the whole run.
    out = [Component(2, 3)] if component.layer < 2 else []
    evaluator = Evaluator(any_tiny, sets.evaluation, mean)
    estimate = evaluator.estimate(out)
    assert set(estimate) == set(components(any_tiny)) - set(out)
    own = evaluator.run.activations
    nearly = {
        kind: torch.lerp(
            getattr(own, kind), getattr(mean, kind).expand_as(getattr(own, kind)), small
        )
        for kind in ("z", "mlp")
    }
    for kind, new in nearly.items():  # what is out already goes all the way
        for c in out:
            if kind == "z":
                new[c.layer][:, :, c.head] = mean.z[c.layer][:, :, c.head]
    evaluator.replacement = replay.Activations(**nearly)
    moved = evaluator.replaced([[*out, component], out]).logit_diff.mean(1)
    slope = ((moved[0] - moved[1]) / small).item()
    assert estimate[component] == pytest.approx(slope, rel=0.1, abs=3e-3)
    assert abs(slope) > 1e-4


def test_a_run_without_writes_makes_them_when_they_are_asked_for(any_tiny, sets):
    whole = replay.record(any_tiny, sets.evaluation)
    light = replay.record(any_tiny, sets.evaluation, writes=False)
    assert light.written is None and light.z_shape == tuple(whole.activations.z.shape[1:])
    assert torch.equal(light.residual, whole.residual)
    some = [3, 1]
    for run, expected in ((light, whole.activations), (light[some], whole.activations[some])):
        for kind in ("z", "mlp"):
            found = getattr(run.activations, kind)
            torch.testing.assert_close(found, getattr(expected, kind), atol=1e-5, rtol=1e-5)
            assert getattr(run.activations, kind) is found  # and keeps them


def test_blocks_run_without_logits_and_leave_no_hook(any_tiny, sets, hooks_left):
    expected = replay.record(any_tiny, sets.evaluation).residual[-1]  # the library's own hooks stay
    before, seen, read = hooks_left(any_tiny), [], []
    handle = any_tiny.bridge.unembed.register_forward_hook(lambda *a: read.append(1))
    last = replay.hook_name(any_tiny.n_layers - 1, "out")
    hooks = [(last, lambda value, hook: seen.append(value))]
    with torch.no_grad():
        replay.run_blocks(any_tiny, sets.evaluation.tokens, hooks)
        assert not read
        any_tiny.bridge(sets.evaluation.tokens)
    handle.remove()
    assert read and hooks_left(any_tiny) == before
    assert len(seen) == 1 and torch.equal(seen[0], expected)


def test_means_in_batches_are_those_of_all_prompts_at_once(any_tiny, sets, monkeypatch):
    sizes, own = [], replay.record

    def recorded(model, prompts):
        sizes.append(len(prompts.tokens))
        return own(model, prompts)

    whole = own(any_tiny, sets.means).activations.mean()
    monkeypatch.setattr(replay, "record", recorded)
    found = replay.mean_activations(any_tiny, sets.means, batch=3)
    assert max(sizes) == 3 > min(sizes) and sum(sizes) == len(sets.means)
    for kind in ("z", "mlp"):
        torch.testing.assert_close(getattr(found, kind), getattr(whole, kind))


def test_estimates_in_batches_are_those_of_all_prompts_at_once(any_tiny, sets, means, monkeypatch):
    """The gradient's graph is of one batch: it took 25 GB at the paper's 1,536 prompts."""
    prompts, gone = sets.evaluation, [Component(1, 2), Component(1, None)]
    mean = means[any_tiny.facts.title]
    evaluator = Evaluator(any_tiny, prompts, mean)
    asked, own = [], Evaluator._slopes

    def slopes(self, masks, metric):
        asked.append(len(self.prompts))
        return own(self, masks, metric)

    monkeypatch.setattr(Evaluator, "_slopes", slopes)
    monkeypatch.setitem(evaluator_module.GRADIENT_BATCH, "cpu", len(prompts))
    expected = evaluator.estimate(gone)
    assert asked == [len(prompts)]
    monkeypatch.setitem(evaluator_module.GRADIENT_BATCH, "cpu", 4)
    found = evaluator.estimate(gone)
    assert asked[1:] == [4, len(prompts) - 4]
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-5)
    assert not {*gone} & {*found}


def test_estimates_on_some_prompts_are_those_of_a_smaller_set(gpt2, sets, means):
    evaluator = Evaluator(gpt2, sets.evaluation, means["gpt2"])
    part = Evaluator(gpt2, sets.evaluation[[0, 1]], means["gpt2"])
    some, same = evaluator.estimate([Component(1, None)], 2), part.estimate([Component(1, None)])
    assert some == pytest.approx(same, rel=1e-4, abs=1e-6)


def test_a_derived_evaluator_is_a_new_one(any_tiny, sets, means):
    mean, rows, prompts = means[any_tiny.facts.title], [4, 1], sets.corrupted
    resampled = replay.record(any_tiny, sets.evaluation).activations
    evaluator = Evaluator(any_tiny, prompts, resampled)
    for derived, new in (
        (evaluator.with_(rows=rows), (prompts[rows], resampled[rows], None)),
        (evaluator.with_(replacement=mean), (prompts, mean, None)),
        (evaluator.with_(answers=sets.evaluation), (prompts, resampled, sets.evaluation)),
    ):
        other = Evaluator(any_tiny, *new[:2], answers=new[2])
        found, expected = (e.replaced(CANDIDATES) for e in (derived, other))
        for name in vars(found):
            a, b = getattr(found, name), getattr(expected, name)
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="3 prompts"):
        evaluator.with_(replacement=resampled[range(3)])


def test_divergence_from_the_whole_model(gpt2, sets, means):
    evaluator = Evaluator(gpt2, sets.evaluation, means["gpt2"])
    scores = evaluator.replaced([[], [Component(2, None)]])
    torch.testing.assert_close(scores.kl[0], torch.zeros(6), atol=1e-5, rtol=0)
    with torch.no_grad():
        whole = gpt2.bridge(sets.evaluation.tokens)[:, -1].log_softmax(-1)
        other = gpt2.bridge.run_with_hooks(
            sets.evaluation.tokens,
            fwd_hooks=[
                ("blocks.2.hook_mlp_out", lambda v, hook: means["gpt2"].mlp[2].expand_as(v))
            ],
        )[:, -1].log_softmax(-1)
    expected = torch.nn.functional.kl_div(other, whole, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(scores.kl[1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("resample", [False, True])
def test_batch_size_does_not_matter(gpt2, sets, means, resample, monkeypatch):
    new = replay.record(gpt2, sets.corrupted).activations if resample else means["gpt2"]
    where = [sets.evaluation.groups()["end"], *[None] * (len(CANDIDATES) - 1)]
    ran, own = [], engine.Replay.replay

    def replayed(self, masks, residual, *rest):
        ran[-1].add(len(masks) * len(residual))
        return own(self, masks, residual, *rest)

    monkeypatch.setattr(engine.Replay, "replay", replayed)
    results = []
    for rows in (1, 4, 6, 100):  # fewer than there are prompts, too
        ran.append(set())
        evaluator = Evaluator(gpt2, sets.evaluation, new, max_rows=rows)
        results.append(evaluator.replaced(CANDIDATES, positions=where))
    assert [max(some) for some in ran[:3]] == [1, 4, 6] and ran[1] == {4, 2}
    for other in results[1:]:
        for name, value in vars(results[0]).items():
            torch.testing.assert_close(value, getattr(other, name), atol=1e-5, rtol=1e-5)


def test_rows_in_a_row_are_no_copy_and_none_too_many(gpt2, sets):
    run = replay.record(gpt2, sets.evaluation)
    part = run[range(1, 3)]
    assert part.residual.data_ptr() == run.residual[:, 1:].data_ptr() and len(part.tokens) == 2
    assert torch.equal(part.activations.z, run.activations.z[:, [1, 2]])
    with pytest.raises(IndexError):
        run[range(7)]
    with pytest.raises(IndexError):
        run.activations[range(7)]


@pytest.mark.parametrize("source", ["q", "k", "v"])
def test_path_patching_equals_transformer_lens(gpt2, sets, source):
    # The corrupted run is the base; the sender's clean write goes down one path.
    clean = replay.record(gpt2, sets.evaluation).activations
    evaluator = Evaluator(gpt2, sets.corrupted, clean, answers=sets.evaluation)
    receivers = [Component(layer, head) for layer in (1, 2) for head in range(4)]
    ours = paths.path_effects(evaluator, Component(0, 2), receivers, source).logit_diff.mean(1)
    with torch.no_grad():
        _, clean_cache = gpt2.bridge.run_with_cache(sets.evaluation.tokens)
        _, corrupted_cache = gpt2.bridge.run_with_cache(sets.corrupted.tokens)
        theirs = patching.get_act_patch_direct_path(
            gpt2.bridge,
            sets.corrupted.tokens,
            clean_cache,
            corrupted_cache,
            lambda logits: scores_module.Scores.read(
                logits[:, -1], sets.evaluation
            ).logit_diff.mean(),
            src_layer=0,
            src_head=2,
            component=source,
            verbose=False,
        )
    torch.testing.assert_close(ours, theirs[1:].flatten().cpu(), atol=1e-4, rtol=1e-4)
    assert (ours - evaluator.intact.logit_diff.mean()).abs().max() > 1e-4


def test_paths_that_do_not_exist_are_refused(tiny, gpt2, sets, means):
    evaluator = Evaluator(gpt2, sets.evaluation, means["gpt2"])
    with pytest.raises(UserError, match="no path"):
        paths.path_effects(evaluator, Component(1, 0), [Component(1, 1)], "q")
    with pytest.raises(UserError, match="no path"):
        paths.path_effects(evaluator, Component(1, 0), [Component(0, 1)], "q")  # below
    with pytest.raises(UserError, match="unknown input"):
        paths.path_effects(evaluator, Component(0, 0), [Component(1, 1)], "z")
    gemma = Evaluator(tiny["gemma2"], sets.evaluation, means["gemma2"])
    with pytest.raises(UserError, match="normalises"):
        paths.path_effects(gemma, Component(0, 0), [Component(1, 1)], "q")


@pytest.mark.parametrize("bad", [Component(9, 0), Component(0, 9), Component(0, -1)])
def test_unknown_components_are_refused(gpt2, sets, means, bad):
    evaluator = Evaluator(gpt2, sets.evaluation, means["gpt2"])
    with pytest.raises(UserError, match="unknown component"):
        evaluator.replaced([[bad]])
    with pytest.raises(UserError, match="unknown component"):
        evaluator.kept([[bad]])


def test_a_replacement_of_other_prompts_is_refused(gpt2, tiny, sets, means):
    short = replay.Activations(means["gpt2"].z[:, :, :-1], means["gpt2"].mlp[:, :, :-1])
    with pytest.raises(UserError, match="shape"):
        Evaluator(gpt2, sets.evaluation, short)
    three = replay.record(gpt2, sets.means[range(3)]).activations
    with pytest.raises(UserError, match="3 prompts"):
        Evaluator(gpt2, sets.evaluation, three)


def test_no_hook_is_left_behind(gpt2, sets, means, hooks_left):
    before = hooks_left(gpt2)
    evaluator = Evaluator(gpt2, sets.evaluation, means["gpt2"])
    evaluator.replaced(CANDIDATES)
    with pytest.raises(RuntimeError):
        broken = replay.Activations(means["gpt2"].z, torch.zeros(3, 1, 2, 2))
        evaluator.replacement = broken
        evaluator.replaced([[Component(0, None)]])
    assert hooks_left(gpt2) == before


def test_names_go_there_and_back(gpt2):
    names = [str(c) for c in components(gpt2)]
    assert names[:5] == ["0.0", "0.1", "0.2", "0.3", "mlp0"] and len(set(names)) == 15
    assert [Component.parse(name) for name in names] == components(gpt2)
    assert sorted(components(gpt2)[::-1]) == components(gpt2)  # MLPs behind the heads
    assert str(max(components(gpt2)[:7])) == "1.1" and str(max(components(gpt2)[:5])) == "mlp0"
    for bad in ("4", "a.b", "mlp", "4.1.0"):
        with pytest.raises(UserError, match="unknown component"):
            Component.parse(bad)


def test_differences_are_those_of_all_scores(any_tiny, sets):
    evaluator = Evaluator(
        any_tiny,
        sets.evaluation,
        replay.record(any_tiny, sets.means).activations.mean(),
        max_rows=13,
    )
    masks = [sets.evaluation.groups()["end"], *[None] * (len(CANDIDATES) - 1)]
    found = evaluator.differences(CANDIDATES, positions=masks)
    expected = evaluator.replaced(CANDIDATES, positions=masks).logit_diff
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    none = evaluator.differences([])
    assert none.shape == (0, len(sets.evaluation)) and none.dtype == expected.dtype


def test_a_replay_gives_the_last_positions_alone_and_bounds_its_rows(gpt2, sets, means):
    run = replay.record(gpt2, sets.evaluation)
    for by_parts in (True, False):
        own = dataclasses.replace(run, by_parts=by_parts)
        again = engine.Replay(own, means["gpt2"], last=2, max_rows=3 * len(sets.evaluation) + 1)
        assert again.step == 3
        found = again.replay([again.masks([])], run.residual[0], 0)
        assert found.shape == (1, len(sets.evaluation), 2, gpt2.facts.d_model)
        torch.testing.assert_close(found[0], run.residual[-1][:, -2:], atol=1e-5, rtol=1e-5)
    assert engine.Replay(run, means["gpt2"], max_rows=1).step == 1
    positions = run.residual.shape[2]
    assert engine.Replay(run, means["gpt2"]).max_rows == engine.TOKENS["cpu"] // positions


def test_what_blocks_are_handed_is_recorded_once_for_prompts_of_a_length(any_tiny, sets):
    passes = []
    handle = any_tiny.bridge.ln_final.register_forward_hook(lambda *_: passes.append(1))
    try:
        any_tiny.measured.clear()
        replay.record(any_tiny, sets.means)
        assert passes  # what is in front of the first block may be needed whole
        passes.clear()
        again = replay.record(any_tiny, sets.evaluation)
        assert not passes
    finally:
        handle.remove()
    assert again.by_parts and again.residual.shape[:2] == (
        any_tiny.n_layers + 1,
        len(sets.evaluation),
    )


def test_a_model_whose_layers_are_handed_something_of_the_words_is_refused(gpt2, sets):
    attention = gpt2.bridge.blocks[1].attn

    def add(module, args, kwargs):
        stream = kwargs.get("hidden_states", args[0] if args else None)
        return args, kwargs | {"of_the_words": stream[:, -1]}

    handle = attention.register_forward_pre_hook(add, with_kwargs=True, prepend=True)
    try:
        gpt2.measured.clear()
        for prompts in (sets.means, sets.means[[0]]):  # one alone, too, and first
            gpt2.measured.clear()
            with pytest.raises(UserError, match="another of_the_words for other prompts"):
                replay._handed(gpt2, prompts)
    finally:
        handle.remove()
        gpt2.measured.clear()

"""The fast evaluator against whole passes with plain hooks, on three architectures."""

import pytest
import torch
from transformer_lens import patching

from seqcirc_utils import ablation, metrics
from seqcirc_utils.ablation import Component, Evaluator, components
from seqcirc_utils.errors import UserError


def plainly(model, prompts, names, replacement, positions=None):
    """The slow, obvious way: one whole pass with a hook per component."""
    n, pos = prompts.tokens.shape
    where = torch.ones(n, pos, dtype=torch.bool) if positions is None else positions
    hooks = []
    for name in names:
        if name.head is None:

            def swap(value, hook, layer=name.layer):
                return torch.where(where[..., None], replacement.mlp[layer], value)

            hooks.append((f"blocks.{name.layer}.hook_mlp_out", swap))
        else:

            def swap(value, hook, layer=name.layer, head=name.head):
                value = value.clone()
                new = replacement.z[layer][:, :, head]
                value[:, :, head] = torch.where(where[..., None], new, value[:, :, head])
                return value

            hooks.append((f"blocks.{name.layer}.attn.hook_z", swap))
    with torch.no_grad():
        logits = model.bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks)[:, -1]
    return metrics.Scores.read(logits, prompts).logit_diff


CANDIDATES = [
    [Component(0, 1)],
    [Component(1, None)],
    [Component(2, 3)],
    [Component(0, 0), Component(1, 2), Component(1, None), Component(2, 1)],
    [Component(0, None), Component(2, None)],
    [],
]


def test_replacement_equals_whole_passes(any_tiny, sets):
    mean = ablation.record(any_tiny, sets.means).activations.mean()
    resampled = ablation.record(any_tiny, sets.corrupted).activations
    for replacement in (mean, resampled):
        evaluator = Evaluator(any_tiny, sets.evaluation, replacement, max_rows=13)
        fast = evaluator.replaced(CANDIDATES).logit_diff
        for found, names in zip(fast, CANDIDATES, strict=True):
            slow = plainly(any_tiny, sets.evaluation, names, replacement)
            torch.testing.assert_close(found, slow, atol=1e-5, rtol=1e-5)
    assert (fast[0] - fast[-1]).abs().max() > 1e-3  # replacing something changes something


def test_position_masks_equal_whole_passes(any_tiny, sets):
    replacement = ablation.record(any_tiny, sets.corrupted).activations
    evaluator = Evaluator(any_tiny, sets.evaluation, replacement)
    masks = [sets.evaluation.groups()["member 4"], sets.evaluation.groups()["end"]]
    for names in ([Component(0, 1)], [Component(1, None), Component(2, 0)]):
        fast = evaluator.replaced([names, names], positions=masks).logit_diff
        for found, mask in zip(fast, masks, strict=True):
            slow = plainly(any_tiny, sets.evaluation, names, replacement, mask)
            torch.testing.assert_close(found, slow, atol=1e-5, rtol=1e-5)


def test_keeping_everything_is_the_model_and_keeping_nothing_replaces_all(gpt2, sets, means):
    evaluator = Evaluator(gpt2, sets.evaluation, means["gpt2"])
    everything = components(gpt2)
    kept = evaluator.kept([everything, []]).logit_diff
    whole = metrics.score(gpt2, sets.evaluation).logit_diff
    torch.testing.assert_close(kept[0], whole, atol=1e-5, rtol=1e-5)
    slow = plainly(gpt2, sets.evaluation, everything, means["gpt2"])
    torch.testing.assert_close(kept[1], slow, atol=1e-5, rtol=1e-5)


def test_batch_size_does_not_matter(gpt2, sets, means):
    results = [
        Evaluator(gpt2, sets.evaluation, means["gpt2"], max_rows=rows).replaced(CANDIDATES)
        for rows in (1, 6, 100)
    ]
    for other in results[1:]:
        torch.testing.assert_close(results[0].logit_diff, other.logit_diff, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("source", ["q", "k", "v"])
def test_path_patching_equals_transformer_lens(gpt2, sets, source):
    # The corrupted run is the base; the sender's clean write goes down one path.
    clean = ablation.record(gpt2, sets.evaluation).activations
    evaluator = Evaluator(gpt2, sets.corrupted, clean, answers=sets.evaluation)
    receivers = [Component(layer, head) for layer in (1, 2) for head in range(4)]
    ours = ablation.path_effects(evaluator, Component(0, 2), receivers, source).logit_diff.mean(1)
    with torch.no_grad():
        _, clean_cache = gpt2.bridge.run_with_cache(sets.evaluation.tokens)
        _, corrupted_cache = gpt2.bridge.run_with_cache(sets.corrupted.tokens)
        theirs = patching.get_act_patch_direct_path(
            gpt2.bridge,
            sets.corrupted.tokens,
            clean_cache,
            corrupted_cache,
            lambda logits: metrics.Scores.read(logits[:, -1], sets.evaluation).logit_diff.mean(),
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
        ablation.path_effects(evaluator, Component(1, 0), [Component(1, 1)], "q")
    with pytest.raises(UserError, match="unknown input"):
        ablation.path_effects(evaluator, Component(0, 0), [Component(1, 1)], "z")
    gemma = Evaluator(tiny["gemma2"], sets.evaluation, means["gemma2"])
    with pytest.raises(UserError, match="normalises"):
        ablation.path_effects(gemma, Component(0, 0), [Component(1, 1)], "q")


@pytest.mark.parametrize("bad", [Component(9, 0), Component(0, 9), Component(0, -1)])
def test_unknown_components_are_refused(gpt2, sets, means, bad):
    evaluator = Evaluator(gpt2, sets.evaluation, means["gpt2"])
    with pytest.raises(UserError, match="unknown component"):
        evaluator.replaced([[bad]])
    with pytest.raises(UserError, match="unknown component"):
        evaluator.kept([[bad]])


def test_a_replacement_of_other_prompts_is_refused(gpt2, tiny, sets, means):
    short = ablation.Activations(means["gpt2"].z[:, :, :-1], means["gpt2"].mlp[:, :, :-1])
    with pytest.raises(UserError, match="shape"):
        Evaluator(gpt2, sets.evaluation, short)
    three = ablation.record(gpt2, sets.means[range(3)]).activations
    with pytest.raises(UserError, match="3 prompts"):
        Evaluator(gpt2, sets.evaluation, three)


def test_no_hook_is_left_behind(gpt2, sets, means, hooks_left):
    before = hooks_left(gpt2)
    evaluator = Evaluator(gpt2, sets.evaluation, means["gpt2"])
    evaluator.replaced(CANDIDATES)
    with pytest.raises(RuntimeError):
        broken = ablation.Activations(means["gpt2"].z, torch.zeros(3, 1, 2, 2))
        evaluator.replacement = broken
        evaluator.replaced([[Component(0, None)]])
    assert hooks_left(gpt2) == before


def test_names_go_there_and_back(gpt2):
    names = [str(c) for c in components(gpt2)]
    assert names[:5] == ["0.0", "0.1", "0.2", "0.3", "mlp0"] and len(set(names)) == 15
    assert [Component.parse(name) for name in names] == components(gpt2)
    for bad in ("4", "a.b", "mlp", "4.1.0"):
        with pytest.raises(UserError, match="unknown component"):
            Component.parse(bad)

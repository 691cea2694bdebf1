"""Interchange: swaps at the last token, held to plain passes, and to a circuit that is known."""

import numpy as np
import pytest
import torch

from seqcirc_utils.ablation.replay import record
from seqcirc_utils.analyses import interchange
from seqcirc_utils.analyses.interchange import Ends, Swap, pairs
from seqcirc_utils.components import Component
from seqcirc_utils.errors import CannotDo
from seqcirc_utils.planted.circuits import PLANTED
from seqcirc_utils.prompts import drawing
from seqcirc_utils.prompts.vocabulary import vocabulary


def sets_of(model, task="months", n=6):
    return drawing.prompt_sets(model, task, n_prompts=n, n_means=4, seed=0, templates=["born"])


def swap_of(model, base, source):
    chosen = pairs(model, base.evaluation, source.evaluation, seed=1)
    means = [Ends.of(record(model, sets.discovery)).mean() for sets in (base, source)]
    return Swap(model, chosen, *means)


@pytest.fixture(scope="module")
def planted():
    return PLANTED["path"].build("months")


@pytest.fixture(scope="module")
def swap(planted):
    sets = sets_of(planted)
    return swap_of(planted, sets, sets)


def test_the_ends_of_a_run_do_not_keep_its_other_positions(planted):
    ends = Ends.of(record(planted, sets_of(planted).evaluation))
    for part in (ends.stream, ends.z):
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


def test_base_prompts_that_were_run_before_are_not_run_again(planted, swap, monkeypatch):
    means = [Ends.of(record(planted, sets_of(planted).discovery)).mean()] * 2
    ran = []
    monkeypatch.setattr(interchange, "record", lambda *a: ran.append(a[1]) or record(*a))
    again = Swap(planted, swap.pairs, *means, run=swap.run)
    assert ran == [swap.pairs.source]
    assert torch.equal(again.stream(1, "raw").says["wanted"], swap.stream(1, "raw").says["wanted"])


def test_pairs_start_elsewhere_and_want_the_member_after_the_source_s_place(planted, swap):
    words = vocabulary("months", planted.tokenizer)
    for start, other, token, answer in zip(
        *(swap.pairs.base.starts, swap.pairs.source.starts, swap.pairs.wanted.tolist()),
        swap.pairs.source.answers,
        strict=True,
    ):
        assert start != other and token == words.ids[other + 4]
        assert words.members[other + 4] == answer.strip()  # the same task: the source's own answer


def test_without_a_source_that_starts_elsewhere_there_is_no_pair(planted):
    sets = sets_of(planted)
    same = sets.evaluation[[0, 0]]
    with pytest.raises(CannotDo, match="no prompt of months fits one of months"):
        pairs(planted, same, same)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("kind", ["raw", "deviation"])
@torch.no_grad()
def test_swaps_are_those_of_plain_hooks(tiny, name, kind):
    model = tiny[name]
    base, source = sets_of(model, "months"), sets_of(model, "months")
    swap = swap_of(model, base, source)
    layer, heads = 1, [Component(0, 1), Component(1, 0)]
    moved = {"raw": swap.source, "deviation": swap.moved}[kind]

    def put_stream(value, hook):
        value = value.clone()
        value[:, -1] = moved.stream[layer]
        return value

    def plain(hooks):
        logits = model.bridge.run_with_hooks(swap.pairs.base.tokens, fwd_hooks=hooks)[:, -1]
        return logits.float().log_softmax(-1)

    found = swap.stream(layer, kind)
    wanted = plain([(f"blocks.{layer}.hook_in", put_stream)])
    ids = swap.pairs.wanted[:, None]
    assert torch.allclose(found.log_prob["wanted"], wanted.gather(-1, ids)[:, 0], atol=1e-4)
    assert torch.equal(found.says["wanted"], wanted.argmax(-1) == ids[:, 0])

    def put_head(z, hook, head):
        z = z.clone()
        z[:, -1, head.head] = moved.z[head.layer, :, head.head]
        return z

    def hook_of(head):
        return f"blocks.{head.layer}.attn.hook_z", lambda z, hook: put_head(z, hook, head)

    wanted = plain([hook_of(head) for head in heads])
    found = swap.heads(heads, kind)
    assert torch.allclose(found.log_prob["wanted"], wanted.gather(-1, ids)[:, 0], atol=1e-4)


def test_a_known_carrier_moves_the_answer_and_an_idle_head_does_not(planted, swap):
    known = PLANTED["path"]
    carriers = [c for c in known.smallest[0] if c.head is not None]
    late = max(carriers)  # the head that brings the newest member to the end
    idle = [Component(late.layer, h) for h in range(3) if Component(late.layer, h) not in carriers]
    found = swap.heads([late], "raw").row(swap.intact)
    assert found["wanted"] == 1 and found["own"] == 0 and found["shift"] > 1
    for head in idle:
        found = swap.heads([head], "raw").row(swap.intact)
        assert found["wanted"] == 0 and found["own"] == 1 and abs(found["shift"]) < 1e-3


def test_the_stream_carries_the_answer_only_after_the_carrier(planted, swap):
    late = max(c for c in PLANTED["path"].smallest[0] if c.head is not None)
    before, after = (swap.stream(i, "raw").row(swap.intact) for i in (0, planted.n_layers))
    assert (before["wanted"], before["own"]) == (0, 1)
    assert (after["wanted"], after["own"]) == (1, 0) and late.layer < planted.n_layers
    # The deviation is the same within one task where the mean is that of the same prompts' kind.
    assert swap.stream(planted.n_layers, "deviation").row(swap.intact)["wanted"] == 1


def test_a_placebo_moves_as_far_and_elsewhere(planted, swap):
    layer, seen = planted.n_layers, {}
    read = swap._read
    for kind in ("deviation", "placebo"):
        swap._read = lambda stream, kind=kind: seen.setdefault(kind, stream) is None or read(stream)
        swap.stream(layer, kind)
    swap._read = read
    old = swap.base.stream[layer]
    moves = {kind: value - old for kind, value in seen.items()}
    assert torch.allclose(
        *(m.norm(dim=-1) for m in moves.values()), rtol=1e-3
    ) and not torch.allclose(*moves.values(), atol=1e-2)


def test_only_the_chosen_directions_are_swapped(planted, swap):
    layer = planted.n_layers
    d_model = swap.base.stream.shape[-1]
    everything = torch.eye(d_model)
    whole = swap.stream(layer, "raw").log_prob["wanted"]
    assert torch.allclose(
        swap.stream(layer, "raw", everything).log_prob["wanted"], whole, atol=1e-4
    )
    nothing = swap.stream(layer, "raw", everything[:, :0])
    assert torch.allclose(nothing.log_prob["own"], swap.intact.log_prob["own"], atol=1e-4)


def test_directions_that_are_found_move_the_answers_they_were_fitted_on(planted):
    """After the carrier the stream holds a member in a direction of its own."""
    sets = sets_of(planted, n=12)
    fitted = pairs(planted, sets.discovery, sets.evaluation, seed=0)
    basis = interchange.subspace(planted, fitted, 2, rank=8, epochs=40)
    assert torch.allclose(basis.T @ basis, torch.eye(8), atol=1e-4)
    mean = Ends.of(record(planted, sets.means)).mean()
    swap = Swap(planted, fitted, mean, mean)
    found = swap.stream(2, "raw", basis).shift(swap.intact).mean()
    random = np.linalg.qr(np.random.default_rng(0).normal(size=basis.shape))[0]
    drawn = swap.stream(2, "raw", torch.tensor(random).float()).shift(swap.intact).mean()
    assert found > drawn + 3

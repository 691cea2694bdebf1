"""Measurements against slow plain computations, rules on made-up evidence and planted models."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import word_tokenizer
from scipy.stats import binom
from transformer_lens.tools.analysis import logit_readout

from seqcirc_utils.analyses import attention, heads, lens, observation, roles
from seqcirc_utils.analyses import writes as writes_module
from seqcirc_utils.components import components
from seqcirc_utils.planted.circuits import PLANTED
from seqcirc_utils.planted.parts import BEFORE, CARRY, MARK, NEXT, Head, Mlp
from seqcirc_utils.prompts import drawing
from seqcirc_utils.prompts import scores as scores_module
from seqcirc_utils.prompts import vocabulary as vocabulary_module


@pytest.fixture(scope="module")
def prompts(sets):
    return sets.evaluation


def cached(model, prompts, *names):
    """Plain values of some hooks in all layers."""
    found = {}
    hooks = [
        (f"blocks.{i}.{name}", lambda v, hook, at=(i, name): found.update({at: v.clone()}))
        for i in range(model.n_layers)
        for name in names
    ]
    with torch.no_grad():
        model.bridge.run_with_hooks(prompts.tokens, return_type=None, fwd_hooks=hooks)
    return found


def role_table(model, task="months", n=8, seed=0):
    prompts = drawing.clean_prompts(model, task, n)
    vocabulary = vocabulary_module.vocabulary(task, model.tokenizer)
    seen = observation.observe(model, prompts)
    shown = writes_module.member_indices(prompts, vocabulary)
    ranks = writes_module.ov_ranks(model, seen.members, vocabulary.members)
    known = [i for i, token in enumerate(vocabulary.ids) if token is not None]
    scores = writes_module.ov_table(model, ranks, shown, known, seed)
    by_head = seen.evidence()
    for name, step in (("ov_next", 1), ("ov_copy", 0)):
        by_head[name] = writes_module.word_hits(ranks, shown, step).float().mean(-1)
    direct = writes_module.direct_writes(model, seen, prompts, vocabulary)
    by_head |= {f"direct_{name}": value for name, value in direct.items()}
    steps = lens.lens(model, seen, prompts).steps("mlp")
    found = roles.evidence(by_head, {f"lens_{name}": value for name, value in steps.items()})
    p = writes_module.p_values(scores)
    table = roles.component_roles(model, found, p, seen.spreads(), seed)
    return table.set_index("component"), scores.set_index(["score", "component"])


# --- Groups and attention ------------------------------------------------------------------------


def test_key_groups_are_what_they_say(prompts):
    keys = attention.key_groups(prompts)
    for row in range(2):
        members = prompts.member_positions[row].tolist()
        tokens = prompts.tokens[row].tolist()
        for q in range(len(tokens)):
            seen = [m for m in members if m < q]
            expected = {
                "newest member": seen[-1:],
                "earlier members": seen[:-1],
                "itself": [q],
                "earlier copies": [k for k in range(q) if tokens[k] == tokens[q]],
                "previous token": [q - 1] if q else [],
                "first token": [0] if q else [],
                "member 2": members[1:2] if members[1] < q else [],
                "earlier fillers": [m - 3 for m in [*members, len(tokens)] if m - 3 < q],
            }
            for name, places in expected.items():
                found = keys[name][row, q].nonzero()[:, 0].tolist()
                assert found == places, (name, q)


def test_fillers_are_the_names(prompts, tokenizer):
    mask = attention.query_groups(prompts)["filler"]
    for row in range(len(prompts)):
        words = [tokenizer.decode([t]).strip() for t in prompts.tokens[row][mask[row]].tolist()]
        assert words == list(prompts.fillers[row][1:])


def test_observed_attention_is_the_plain_mean(any_tiny, prompts):
    seen = observation.observe(any_tiny, prompts, batch=4)
    pattern = cached(any_tiny, prompts, "attn.hook_pattern")[1, "attn.hook_pattern"]
    for n in range(len(prompts)):
        members, end = prompts.member_positions[n].tolist(), prompts.tokens.shape[1] - 1
        for head in range(any_tiny.n_heads):
            own = pattern[n, head]
            expected = sum(own[q, k] for q in members[1:] for k in members if k < q) / 3
            found = seen.attended("later members", "earlier members", "newest member")[1, head, n]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
            found = seen.attended("end", "newest member")[1, head, n]
            torch.testing.assert_close(found, own[end, members[-1]], atol=1e-6, rtol=1e-5)
    assert seen.spread("end", "newest member") == pytest.approx(1 / (end + 1))
    assert seen.spread("end", "newest member", "earlier members") == pytest.approx(4 / (end + 1))


def test_observed_streams_and_sizes_are_the_plain_ones(any_tiny, prompts, hooks_left):
    before = hooks_left(any_tiny)
    seen = observation.observe(any_tiny, prompts, batch=4)
    assert hooks_left(any_tiny) == before
    plain = cached(any_tiny, prompts, "hook_in", "hook_resid_mid", "hook_out", "attn.hook_z")
    torch.testing.assert_close(seen.end[2], plain[1, "hook_in"][:, -1])
    torch.testing.assert_close(seen.end[3], plain[1, "hook_resid_mid"][:, -1])
    torch.testing.assert_close(seen.end[-1], plain[2, "hook_out"][:, -1])
    n = torch.arange(len(prompts))[:, None]
    at = prompts.member_positions
    torch.testing.assert_close(seen.members[2], plain[2, "hook_in"][n, at])
    torch.testing.assert_close(seen.embedded, plain[0, "hook_out"][n, at])
    z = plain[1, "attn.hook_z"][n, at][:, 1:]  # at the later members
    writes = heads.head_writes(any_tiny, 1, z.flatten(0, 1)).unflatten(0, z.shape[:2])
    size = writes[:, :, 3].norm(dim=-1).mean(1)
    found = seen.sizes[1, 3, :, seen.queries.index("later members")]
    torch.testing.assert_close(found, size, atol=1e-4, rtol=1e-4)


# --- OV and direct writes ------------------------------------------------------------------------


def test_heads_write_what_the_attention_layer_adds(any_tiny, prompts):
    plain = cached(any_tiny, prompts, "hook_in", "hook_resid_mid", "attn.hook_z")
    writes = heads.head_writes(any_tiny, 1, plain[1, "attn.hook_z"][:, -1])
    bias = any_tiny.bridge.blocks[1].attn.b_O
    total = writes.sum(1) + (0 if bias is None else bias)
    added = (plain[1, "hook_resid_mid"] - plain[1, "hook_in"])[:, -1]
    torch.testing.assert_close(total, added, atol=1e-5, rtol=1e-4)


def test_ov_is_the_head_with_all_attention_on_itself(any_tiny, prompts):
    pos = prompts.tokens.shape[1]
    seen = {}

    def only_itself(pattern, hook):
        return torch.eye(pos).expand_as(pattern)

    hooks = [
        ("blocks.1.attn.hook_pattern", only_itself),
        ("blocks.1.hook_in", lambda v, hook: seen.update(stream=v.clone())),
        ("blocks.1.attn.hook_z", lambda v, hook: seen.update(z=v.clone())),
    ]
    with torch.no_grad():
        any_tiny.bridge.run_with_hooks(prompts.tokens, return_type=None, fwd_hooks=hooks)
        found = heads.ov_writes(any_tiny, 1, seen["stream"][:, 7])
        expected = heads.head_writes(any_tiny, 1, seen["z"][:, 7])
    assert expected.norm(dim=-1).min() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_ranks_are_those_of_the_whole_vocabulary(any_tiny, prompts, monkeypatch):
    small = writes_module._Reader.__init__
    monkeypatch.setattr(  # many slabs, so that rows leave on the way
        writes_module._Reader,
        "__init__",
        lambda self, model, ids: small(self, model, ids, first=16),
    )
    streams = observation.observe(any_tiny, prompts).members
    words = ["May", "June", "Frank", "zzz"]
    found = writes_module.ov_ranks(any_tiny, streams, words, chunk=7)
    assert found.shape == (3, 4, *streams.shape[1:3], 4)
    assert (found[..., 3] == 10).all()  # not a token
    for layer in range(3):
        writes = heads.ov_writes(any_tiny, layer, streams[layer].flatten(0, 1))
        for i, word in enumerate(words[:3]):
            ids = [any_tiny.tokenizer.convert_tokens_to_ids(w) for w in (word, f" {word}")]
            ranks = logit_readout(any_tiny.bridge, writes, targets=ids).target_ranks
            expected = ranks.min(-1).values.clamp(max=10).T.reshape(found[layer, ..., i].shape)
            assert torch.equal(found[layer, ..., i].long(), expected)
    assert ((found[..., :3] > 0) & (found[..., :3] < 10)).any()


def test_hits_follow_the_list_and_end_with_it():
    ranks = torch.full((1, 1, 1, 2, 3), 10)
    ranks[0, 0, 0, 0, 1] = 4  # place 0 shows word 0, the next word has rank 4
    ranks[0, 0, 0, 1, 2] = 0  # place 1 shows word 2: itself on top, no next
    shown = torch.tensor([[0, 2]])
    assert writes_module.word_hits(ranks, shown, 1)[0, 0].tolist() == [[True, False]]
    assert writes_module.word_hits(ranks, shown, 1, k=1)[0, 0].tolist() == [[False, False]]
    assert writes_module.word_hits(ranks, shown, 0)[0, 0].tolist() == [[False, True]]


def test_null_tells_successors_from_any_member():
    null = writes_module.shuffled_successors(range(10), 12, 199, seed=0)
    assert (null[:, :10] != torch.arange(10)).all() and (null[:, :10] < 10).all()
    assert all(len(row[:10].unique()) == 10 for row in null)
    shown = torch.arange(9).repeat(3)
    hits = torch.zeros(3, 27, 12, dtype=torch.bool)
    hits[0, torch.arange(27), shown + 1] = True  # the next member
    hits[1] = True  # any member
    hits[2, torch.arange(27), shown] = True  # the same member
    assert writes_module.null_p(hits, shown, 1, null).tolist() == [1 / 200, 1, 1]
    assert writes_module.null_p(hits, shown, 0, null).tolist() == [1, 1, 1 / 200]


def test_bare_sequences_have_nothing_in_front(gpt2):
    apart = replace(gpt2, tokenizer=word_tokenizer(space_apart=True))
    for model, task in ((gpt2, "months"), (apart, "digits")):
        vocabulary = vocabulary_module.vocabulary(task, model.tokenizer)
        found, shown = writes_module.bare_sequences(model, vocabulary)
        text = " ".join(vocabulary.members[i] for i in shown[1])
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        places = [i for i, t in enumerate(ids) if model.tokenizer.decode([t]) != " "]
        plain = cached(model, type("P", (), {"tokens": torch.tensor([ids])}), "hook_out")
        torch.testing.assert_close(found[1], plain[0, "hook_out"][0, places])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_direct_writes_are_what_the_logits_lose(tiny, prompts, architecture):
    model = tiny[architecture]
    vocabulary = vocabulary_module.vocabulary("months", model.tokenizer)
    seen = observation.observe(model, prompts)
    found = writes_module.direct_writes(model, seen, prompts, vocabulary)
    z = cached(model, prompts, "attn.hook_z")[1, "attn.hook_z"][:, -1, 2]
    write = z @ model.bridge.blocks[1].attn.W_O[2]
    with_, without = (
        logit_readout(model.bridge, stream, vocab=list(vocabulary.ids)).values
        for stream in (seen.end[-1], seen.end[-1] - write)
    )
    for n in range(len(prompts)):
        lost = dict(zip(vocabulary.ids, (with_ - without)[n].tolist(), strict=True))
        answer, last = lost.pop(int(prompts.answer_ids[n])), lost.pop(int(prompts.last_ids[n]))
        rest = np.mean(list(lost.values()))
        assert found["next"][1, 2, n].item() == pytest.approx(answer - rest, abs=1e-4)
        assert found["last"][1, 2, n].item() == pytest.approx(last - rest, abs=1e-4)


# --- Lens ----------------------------------------------------------------------------------------


def test_probabilities_are_exact_over_a_large_vocabulary(monkeypatch):
    # What a float32 softmax makes of so many tokens is off by a few in ten thousand.
    read = torch.randn(2, 49_152, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(lens, "logits", lambda model, normed, ids: read)
    model = SimpleNamespace(bridge=SimpleNamespace(ln_final=lambda stream: stream))
    best = read.argmax(-1)
    ids = torch.stack([best, torch.tensor([5, 7])], -1)
    found, on_top = lens.readout(model, torch.zeros(2, 1), ids)
    expected = read.double().softmax(-1).gather(-1, ids)
    torch.testing.assert_close(found.double(), expected, atol=0, rtol=2e-7)
    assert on_top.tolist() == [[True, False]] * 2


def test_lens_ends_in_the_model_and_its_steps_add_up(any_tiny, prompts):
    read = lens.lens(any_tiny, observation.observe(any_tiny, prompts), prompts)
    scores = scores_module.score(any_tiny, prompts)
    torch.testing.assert_close(read.next[-1], scores.answer_prob, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(read.last[-1], scores.last_prob, atol=1e-6, rtol=1e-3)
    parts = {part: read.steps(part) for part in ("attention", "mlp", "block")}
    for name in ("next", "last"):
        both = parts["attention"][name] + parts["mlp"][name]
        torch.testing.assert_close(both, parts["block"][name])
    torch.testing.assert_close(parts["block"]["last"].sum(0), read.last[-1] - read.last[0])


def test_overtaking_counts_once_and_for_good():
    last = torch.full((7, 1), 0.5)
    next_ = torch.tensor([0.1, 0.6, 0.1, 0.1, 0.1, 0.6, 0.7])[:, None]
    top = torch.tensor([0, 0, -1, -1, -1, 0, 1])[:, None]
    read = lens.Lens(next_, last, top)
    assert read.steps("attention")["overtakes"][:, 0].tolist() == [0, 0, 1]
    assert read.steps("mlp")["overtakes"].sum() == 0
    assert read.steps("mlp")["switches"].sum() == 0  # not in one step
    assert read.steps("block")["switches"][:, 0].tolist() == [0, 0, 1]


# --- Rules ---------------------------------------------------------------------------------------

NOTHING = {
    **{name: 0.0 for name in attention.ATTENTION_EVIDENCE},
    **{f"{name}_size": 1.0 for name in attention.SIZE_EVIDENCE},
    **{"ov_next": 0.0, "ov_copy": 0.0, "p_next": 1.0, "p_copy": 1.0},
    **{"direct_next": 0.0, "direct_last": 0.0, "lens_next": np.nan, "lens_last": np.nan},
}
EVEN = dict.fromkeys(attention.ATTENTION_EVIDENCE, 0.1)
LOOKS = {"end_to_members": 0.6}
WRITES_NEXT = {"ov_next": 0.9, "p_next": 0.001}
WRITES_COPY = {"ov_copy": 0.9, "p_copy": 0.001}


def role(even=EVEN, **changes):
    return str(roles.assign({k: np.array(v) for k, v in (NOTHING | changes).items()}, even))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "none"),
        (LOOKS, "transport to the end"),
        ({"end_to_members": 0.19}, "none"),
        (LOOKS | WRITES_NEXT, "next member"),
        (WRITES_NEXT, "none"),  # what it would write does not matter if it looks elsewhere
        (LOOKS | WRITES_NEXT | {"p_next": 0.2}, "transport to the end"),
        (LOOKS | WRITES_NEXT | {"ov_next": 0.2}, "transport to the end"),
        (LOOKS | WRITES_NEXT | WRITES_COPY, "copy"),  # a tie is no preference for the next
        (LOOKS | WRITES_NEXT | WRITES_COPY | {"ov_copy": 0.5}, "next member"),
        (LOOKS | WRITES_COPY, "copy"),
        (LOOKS | {"direct_last": -0.5}, "inhibition"),
        (LOOKS | {"direct_last": -0.05}, "transport to the end"),
        ({"direct_last": -0.5}, "none"),
        ({"in_to_copies": 0.5}, "duplicate token"),
        ({"members_to_members": 0.5}, "member detection"),
        ({"members_to_members": 0.5, "in_to_copies": 0.6}, "duplicate token"),
        # It looks the same way from both, but writes at members only.
        (
            {"members_to_members": 0.5, "in_to_copies": 0.6, "in_to_copies_size": 0.1},
            "member detection",
        ),
        (LOOKS | {"members_to_members": 0.7}, "member detection"),
        ({"lens_next": 0.1, "lens_last": 0.0, "end_to_members": np.nan}, "promotes next member"),
        ({"lens_next": 0.1, "lens_last": 0.2, "end_to_members": np.nan}, "copies last member"),
        ({"lens_next": -0.1, "lens_last": 0.0, "end_to_members": np.nan}, "none"),
    ],
)
def test_rules(changes, expected):
    assert role(**changes) == expected


def test_attention_must_exceed_what_even_spread_gives():
    assert role(EVEN | {"end_to_members": 0.5}, **LOOKS) == "none"
    spread = EVEN | {"end_to_members": 0.25}
    assert role(spread, end_to_members=0.375) == "transport to the end"
    assert role(spread, end_to_members=0.374) == "none"


MLP = {"end_to_members": np.nan, "lens_next": 0.0, "lens_last": 0.0}


@pytest.mark.parametrize(
    ("given", "column", "last", "first", "expected"),
    [
        ({}, "end_to_members", 0.2, 0.199, "transport to the end"),
        ({}, "in_to_copies", 0.2, 0.199, "duplicate token"),
        ({}, "members_to_members", 0.2, 0.199, "member detection"),
        (LOOKS | WRITES_NEXT, "ov_next", 0.25, 0.249, "next member"),
        (LOOKS | WRITES_NEXT, "p_next", 0.01, 0.011, "next member"),
        (LOOKS | WRITES_COPY, "ov_copy", 0.25, 0.249, "copy"),
        (LOOKS | WRITES_COPY, "p_copy", 0.01, 0.011, "copy"),
        (LOOKS, "direct_last", -0.1, -0.099, "inhibition"),
        (MLP, "lens_next", 0.02, 0.019, "promotes next member"),
        (MLP, "lens_last", 0.02, 0.019, "copies last member"),
        (MLP | {"lens_next": 0.05}, "lens_last", 0.05, 0.051, "promotes next member"),
    ],
)
def test_a_role_begins_at_its_threshold(given, column, last, first, expected):
    assert role(**given | {column: last}) == expected
    assert role(**given | {column: first}) != expected


def test_the_thresholds_are_those_of_the_book():
    assert roles.thresholds() == {
        **{"attention": 0.2, "lift": 1.5, "top_k": 5, "ov_share": 0.25, "ov_p": 0.01},
        **{"direct": 0.1, "lens_step": 0.02},
    }


def test_confidence_is_the_share_of_resamples(gpt2):
    everything = components(gpt2)
    n = 20
    found = {k: torch.full((len(everything), n), float(v)) for k, v in NOTHING.items()}
    n_heads = gpt2.n_layers * gpt2.n_heads
    p = {name: found.pop(name)[:n_heads, 0].numpy() for name in ("p_next", "p_copy")}
    found["end_to_members"][0] = 0.9
    found["end_to_members"][1, : n // 2] = 2 * roles.ATTENTION + 1e-6  # just over, on average
    table = roles.component_roles(gpt2, found, p, EVEN, seed=0).set_index("component")
    sure, unsure = table.loc["0.0"], table.loc["0.1"]
    assert sure["role"] == unsure["role"] == "transport to the end"
    assert sure["confidence"] == 1 and sure["rival"] == ""
    assert 0.4 < unsure["confidence"] < 0.8 and unsure["rival"] == "none"
    assert unsure["confidence"] + unsure["rival_share"] == pytest.approx(1)
    assert unsure["end_to_members_low"] < roles.ATTENTION < unsure["end_to_members_high"]
    # Of 20 prompts 10 say 0.4: the mean's 95% interval by the binomial law.
    bounds = binom.ppf([0.025, 0.975], n, 0.5) / n * (2 * roles.ATTENTION)
    assert unsure["end_to_members_low"] == pytest.approx(bounds[0], abs=0.021)
    assert unsure["end_to_members_high"] == pytest.approx(bounds[1], abs=0.021)
    assert unsure["confidence"] == pytest.approx(binom.sf(9, n, 0.5), abs=0.05)
    again = roles.component_roles(gpt2, found, p, EVEN, seed=0).set_index("component")
    other = roles.component_roles(gpt2, found, p, EVEN, seed=1).set_index("component")
    assert again.equals(table) and other.loc["0.1", "confidence"] != unsure["confidence"]


# --- Planted models ------------------------------------------------------------------------------


# What the rules should call the parts; the others take part in nothing that has a role.
CALLED = {
    BEFORE.role: "member detection",
    CARRY.role: "transport to the end",
    NEXT.role: "promotes next member",
    MARK.role: "none",
}
IDLE_LOOKS = ("newest filler", "everything", "one token back", "itself")


@pytest.mark.parametrize(
    ("name", "task"), [*((name, "months") for name in PLANTED), ("path", "number_words")]
)
def test_planted_roles_are_found(name, task):
    model = PLANTED[name]
    table, _ = role_table(model.build(task), task)
    expected = {}
    for component, part in model.parts.items():
        if part.role in CALLED:
            expected[str(component)] = CALLED[part.role]
        if isinstance(part, Head) and part.looks in IDLE_LOOKS:
            expected[str(component)] = "none"
    assert {*expected.values()} >= {"member detection", "promotes next member", "none"}
    assert table.loc[list(expected), "role"].to_dict() == expected
    assert (table.loc[list(expected), "confidence"] == 1).all()


def planted_with(**changes):
    """A planted model with parts of its own: ``head_0_1`` is 0.1."""
    changes = {k.removeprefix("head_").replace("_", "."): v for k, v in changes.items()}
    return replace(PLANTED["path"], changes=changes).build()


def test_planted_writers():
    model = planted_with(
        head_0_0=Head("", "one sentence back", "is in", "marked"),
        # Every member's successor is made at the member itself, then fetched from there.
        head_0_1=Head("", "itself", "member", "carried"),
        mlp0=Mlp("", "next"),
        head_1_0=Head("", "newest member", "next", "next"),
        head_1_1=Head("", "newest member", "member", "next"),
        head_1_2=Head("", "newest member", "member", "next", -1.0),
    )
    table, scores = role_table(model)
    expected = {
        "0.0": "duplicate token",
        "1.0": "next member",
        "1.1": "copy",
        "1.2": "inhibition",
    }
    assert table.loc[list(expected), "role"].to_dict() == expected
    assert scores.loc[("next", "1.0"), "top1"] == 1 and scores.loc[("copy", "1.0"), "top1"] == 0
    assert scores.loc[("copy", "1.1"), "top1"] == 1 and scores.loc[("copy", "1.1"), "p"] < 0.01


def test_the_shortcut_misses_what_later_layers_make():
    model = planted_with(
        head_0_1=Head("", "itself", "member", "carried"),
        mlp0=Mlp("", "echo"),
        mlp1=Mlp("", "next"),
        head_2_0=Head("", "newest member", "next", "next"),
    )
    prompts = drawing.clean_prompts(model, "months", 8)
    vocabulary = vocabulary_module.vocabulary("months", model.tokenizer)
    seen = observation.observe(model, prompts)
    shown = writes_module.member_indices(prompts, vocabulary)
    own = writes_module.ov_ranks(model, seen.members, vocabulary.members)
    shortcut = writes_module.ov_ranks(model, seen.embedded[None], vocabulary.members)
    assert writes_module.word_hits(own, shown, 1)[2, 0].all()
    assert not writes_module.word_hits(shortcut, shown, 1, k=1)[2, 0].any()
    alone = writes_module.ov_ranks(model, seen.embedded[None], ["May"])
    assert (alone[2, 0] == 10).all()  # nothing written: a tie with every token, no hit


def test_attention_table_and_patterns(gpt2, prompts):
    seen = observation.observe(gpt2, prompts)
    table = observation.attention_table(gpt2, seen, ["1.2"], seed=0)
    assert len(table) == len(seen.queries) * len(seen.keys)
    row = table[(table["query"] == "end") & (table["key"] == "member 4")].iloc[0]
    whole = cached(gpt2, prompts, "attn.hook_pattern")[1, "attn.hook_pattern"][:, 2]
    expected = whole[:, -1, prompts.member_positions[0, 3]]
    assert row["mean"] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert row["low"] <= row["mean"] <= row["high"]
    one = observation.patterns(gpt2, prompts[[2]], ["0.1", "1.2"])
    assert list(one) == ["0.1", "1.2"]
    torch.testing.assert_close(one["1.2"], whole[2])


@pytest.mark.model
def test_default_model_on_digits(default_model):
    table, _ = role_table(default_model, "digits", n=8)
    assert table.loc["23.3", "role"] == "inhibition"
    assert table.loc["6.1", "role"] == "member detection"
    assert table["confidence"].between(0, 1).all()

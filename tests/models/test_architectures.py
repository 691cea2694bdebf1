"""Every architecture, every number that reads weights: right, or refused with a reason.

What is right is computed another way: whole passes of the model with plain hooks. What a head
writes is read off the stream itself, with the head's ``z`` changed and the layer's MLP held still,
so that neither weights nor multipliers nor norms come into it.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import SIZES, save_random
from oracles import plain_logits

from seqcirc_utils.ablation import answers, replay, text
from seqcirc_utils.ablation import paths as paths_module
from seqcirc_utils.ablation.edges import EdgeEvaluator
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import Activations
from seqcirc_utils.analyses import attribution, heads, lens, observation, writes
from seqcirc_utils.components import Component, Edge, components
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import capabilities, loading
from seqcirc_utils.prompts import vocabulary as vocabulary_module

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, **SIZES}
SHARED = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
OLD = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, **SIZES}
GEMMA = SHARED | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8, "pad_token_id": 0}
CONFIGS = {
    "gpt2": ("GPT2Config", OLD),
    "qwen2": ("Qwen2Config", SHARED),
    "granite": (
        "GraniteConfig",
        SHARED
        | {"residual_multiplier": 0.22, "embedding_multiplier": 2.0}
        | {"attention_multiplier": 0.2, "logits_scaling": 8.0},
    ),
    "gemma2": (
        "Gemma2Config",
        GEMMA | {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": ("Gemma3TextConfig", GEMMA),
    "olmo2": ("Olmo2Config", SHARED | {"pad_token_id": 0}),
    "mixtral": ("MixtralConfig", SHARED | {"num_local_experts": 4}),
    "opt": (
        "OPTConfig",
        SMALL
        | {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0}
        | {"max_position_embeddings": 64},
    ),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 3, "n_head": 4, **SIZES}),
    "neox": ("GPTNeoXConfig", SMALL | {"intermediate_size": 48, "max_position_embeddings": 64}),
    "phi": ("PhiConfig", SHARED | {"num_key_value_heads": 4}),
    "cohere": ("CohereConfig", SHARED | {"logit_scale": 0.25, "pad_token_id": 0}),
    "falcon": ("FalconConfig", SMALL),
    "falcon alibi": ("FalconConfig", SMALL | {"alibi": True, "parallel_attn": False}),
}


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, tmp_path_factory, tokenizer, sets):
    """A random model, and what it does by itself on a few prompts."""
    kind, options = CONFIGS[request.param]
    config = getattr(transformers, kind)(vocab_size=len(tokenizer), **options)
    path = tmp_path_factory.mktemp("tiny") / request.param
    model = loading.load(str(save_random(config, path, tokenizer)), "cpu")
    model = replace(model, tokenizer=tokenizer)  # Qwen's own class would read these words otherwise
    prompts, corrupted = sets.evaluation[range(3)], sets.corrupted[range(3)]
    new = replay.record(model, corrupted).activations
    return SimpleNamespace(
        name=request.param, path=path, model=model, prompts=prompts, corrupted=corrupted, new=new
    )


def values(case, *names, hooks=()):
    """The values at some hooks in one whole pass, and the logits at the end."""
    found = {}
    note = [(n, lambda v, hook, n=n: found.update({n: v.clone()})) for n in names]
    with torch.no_grad():
        logits = case.model.bridge.run_with_hooks(case.prompts.tokens, fwd_hooks=[*hooks, *note])[
            :, -1
        ]
    return [*(found[name] for name in names), logits]


def put(name, new, head=None):
    """A hook that gives a value, or one head of it."""

    def act(value, hook):
        if head is None:
            return new.expand_as(value)
        value = value.clone()
        value[:, :, head] = new
        return value

    return name, act


def at(layer, kind):
    return f"blocks.{layer}.{'attn.' if kind in 'zqkv' else ''}hook_{kind}"


def moved(case, component, new):
    """How the stream changes when a component writes something else ``[n, pos, d_model]``."""
    layer, head = component
    out, mlp, _ = values(case, at(layer, "out"), at(layer, "mlp_out"))
    hooks = [put(at(layer, "mlp_out"), new if head is None else mlp)]
    if head is not None:
        hooks.append(put(at(layer, "z"), new, head))
    return values(case, at(layer, "out"), hooks=hooks)[0] - out


def write(case, component):
    """What a component adds to the stream ``[n, pos, d_model]``."""
    return -moved(case, component, torch.zeros(()))


def replacement(case, component):
    layer, head = component
    return case.new.mlp[layer] if head is None else case.new.z[layer][:, :, head]


def along(case, edge):
    """Logits when the sender's replacement reaches one reader only."""
    sender, receiver, source = edge
    change = moved(case, sender, replacement(case, sender))
    if receiver is None:
        last = at(case.model.n_layers - 1, "out")
        return values(case, hooks=[(last, lambda v, hook: v + change)])[-1]
    where = "in" if receiver.head is not None else "resid_mid"
    add = (at(receiver.layer, where), lambda v, hook: v + change)
    if receiver.head is None:
        mlp = values(case, at(receiver.layer, "mlp_out"), hooks=[add])[0]
        return values(case, hooks=[put(at(receiver.layer, "mlp_out"), mlp)])[-1]
    read = values(case, at(receiver.layer, source), hooks=[add])[0]
    z = values(case, at(receiver.layer, "z"), hooks=[put(at(receiver.layer, source), read)])[0]
    z = z[:, :, receiver.head]
    return values(case, hooks=[put(at(receiver.layer, "z"), z, receiver.head)])[-1]


def difference(case, logits):
    rows = torch.arange(len(logits))
    return logits[rows, case.prompts.answer_ids] - logits[rows, case.prompts.last_ids]


def close(found, expected, least=1e-3):
    """Equal, and not just because nothing is there."""
    assert expected.abs().max() > least
    size = expected.abs().max().item()
    torch.testing.assert_close(found, expected, atol=2e-5 * (1 + size), rtol=1e-4)


# --- What is held to the plain passes ------------------------------------------------------------


def ablations(case):
    """Replacing any components, all together in one batch."""
    evaluator = Evaluator(case.model, case.prompts, case.new)
    names = [["0.1"], ["mlp1"], ["2.3", "1.0"], ["0.0", "mlp0", "1.2", "2.1", "mlp2"], []]
    candidates = [[Component.parse(name) for name in row] for row in names]
    found = evaluator.replaced(candidates)
    everything = evaluator.kept([[]]).logit_diff[0]
    for row, names in zip(found.logit_diff, candidates, strict=True):
        close(row, difference(case, plain_logits(case.model, case.prompts, names, case.new)))
    plain = plain_logits(case.model, case.prompts, components(case.model), case.new)
    close(everything, difference(case, plain))
    last = (at(2, "out"), lambda value, hook: -value)  # far from where the model itself goes
    other = evaluator.difference(-evaluator.run.residual[-1][None])[0]
    close(other, difference(case, values(case, hooks=[last])[-1]))


def estimates(case):
    """The slope of the logit difference, against small steps."""
    evaluator = Evaluator(case.model, case.prompts, case.new)
    found, own, step = evaluator.estimate(), evaluator.run.activations, 1e-2
    near = Activations(torch.lerp(own.z, case.new.z, step), torch.lerp(own.mlp, case.new.mlp, step))
    names = [Component(1, 2), Component(1, None), Component(2, 0)]
    before = difference(case, values(case)[-1]).mean()
    for name in names:
        after = difference(case, plain_logits(case.model, case.prompts, [name], near)).mean()
        assert found[name] == pytest.approx((after - before).item() / step, rel=0.1, abs=5e-3)


def mlp_writes(case):
    """What is recorded of an MLP is what the stream gets."""
    run = replay.record(case.model, case.prompts)
    for layer in range(3):
        close(write(case, Component(layer, None)), run.activations.mlp[layer])


def paths(case):
    """Path patching from a head into q, k, v of later heads."""
    evaluator = Evaluator(case.model, case.prompts, case.new)
    sender, receivers = Component(0, 2), [Component(1, 1), Component(2, 3)]
    for source in "qkv":
        found = paths_module.path_effects(evaluator, sender, receivers, source).logit_diff
        expected = [difference(case, along(case, Edge(sender, r, source))) for r in receivers]
        change = torch.stack(expected) - difference(case, values(case)[-1])
        assert change.abs().max() > 1e-4
        own = evaluator.intact.logit_diff
        size = own.abs().max().item()  # a difference of two numbers of this size
        torch.testing.assert_close(found - own, change, atol=2e-6 * (1 + size), rtol=1e-3)


def edges(case):
    """Edges of all kinds, each cut alone in the whole model."""
    evaluator = Evaluator(case.model, case.prompts, case.new)
    circuit = EdgeEvaluator(evaluator, components(case.model))
    names = ["0.1->1.2.q", "0.1->2.0.k", "mlp0->1.3.v", "mlp1->mlp2", "1.1->mlp1", "0.3->mlp2"]
    names += ["0.2->logits", "mlp2->logits"]
    cut = [Edge.parse(name) for name in names]
    found = circuit.without([[edge] for edge in cut])
    close(found, torch.stack([difference(case, along(case, edge)) for edge in cut]))
    everyone = [plain_logits(case.model, case.prompts, components(case.model), case.new)]
    close(circuit.differences([[]]), torch.stack([difference(case, row) for row in everyone]))


def direct(case):
    """Direct attribution: every share, and their sum."""
    raw = case.model.bridge
    stream, logits = values(case, at(2, "out"))
    x, first = stream[:, -1], values(case, at(0, "in"))[0][:, -1]
    shares, d = {"embed": first}, case.model.facts.d_model
    centred = raw.cfg.normalization_type.startswith("LN")
    for layer, head in components(case.model):
        c, block = Component(layer, head), raw.blocks[layer]
        if head is None:
            shares[str(c)] = write(case, c)[:, -1]
        elif "ln1_post" in block._modules:
            z = values(case, at(layer, "z"))[0][:, -1]
            shares[str(c)] = heads.head_writes(case.model, layer, z)[:, head]
        else:
            # What no prompt changes counts as bias: values of a stream that a norm makes zero.
            norm = block.ln1(torch.ones(1, 1, d))[0] if centred else torch.zeros(1, d)
            still = torch.einsum("rd,kde->ke", norm, block.attn.W_V)
            still = still if block.attn.b_V is None else still + block.attn.b_V
            shares[str(c)] = -moved(case, c, still[head * len(still) // 4])[:, -1]
    ids = torch.stack([case.prompts.answer_ids, case.prompts.last_ids])
    with torch.no_grad():
        normed = raw.ln_final(stream)[:, -1]
        shift = raw.ln_final(torch.ones_like(stream))[:, -1] if centred else 0 * x  # its bias
        gain = (normed - shift) / (x - centred * x.mean(-1, keepdim=True))
        side = raw.W_U[:, ids[0]].T - raw.W_U[:, ids[1]].T
        plain = (normed * side).sum(-1) + raw.b_U[ids[0]] - raw.b_U[ids[1]]
        factor = difference(case, logits) / plain
        expected = {
            name: ((w - centred * w.mean(-1, keepdim=True)) * gain * side).sum(-1) * factor
            for name, w in shares.items()
        }
    model = attribution.processed(loading.load(str(case.path), "cpu"))
    names, found = attribution.direct_attribution(model, case.prompts)
    assert names == [*expected, "bias"]
    close(found[:-1], torch.stack(list(expected.values())))
    close(found.sum(0), difference(case, logits))


def positions(case):
    """Attribution patching: gradient on the corrupted run times the difference to the clean one."""
    pair = case.prompts[[0]], case.corrupted[[0]]
    found = attribution.position_attribution(case.model, *pair)
    for kind in ("z", "mlp_out"):
        clean, kept = values(case, at(1, kind))[0][:1], []

        def start(value, hook, kept=kept):
            kept.append(value.detach().requires_grad_())
            return kept[0]

        hooks = [(at(1, kind), start)]
        logits = case.model.bridge.run_with_hooks(pair[1].tokens, fwd_hooks=hooks)[0, -1]
        (logits[pair[0].answer_ids[0]] - logits[pair[0].last_ids[0]]).backward()
        effect = ((clean - kept[0]) * kept[0].grad).detach()[0].sum(-1)  # [pos] or [pos, head]
        for head in range(4) if kind == "z" else [None]:
            expected = effect if head is None else effect[:, head]
            close(found[Component(1, head)], expected, 1e-6)


def values_alone(case):
    """A head that reads one token only: at position 0 there is no other."""
    seen, _ = values(case, at(1, "in"))
    found = heads.ov_writes(case.model, 1, seen[:, 0])
    out, mlp, _ = values(case, at(1, "out"), at(1, "mlp_out"))
    silent = [put(at(1, "z"), torch.zeros(())), put(at(1, "mlp_out"), mlp)]
    close(found.sum(1), (out - values(case, at(1, "out"), hooks=silent)[0])[:, 0])
    if "ln1_post" not in case.model.bridge.blocks[1]._modules:  # there, a share of the whole
        close(found, torch.stack([write(case, Component(1, h))[:, 0] for h in range(4)], 1))


def sizes(case):
    """The norm of what a head writes."""
    seen = observation.observe(case.model, case.prompts)
    found = seen.sizes[:, :, :, seen.queries.index("end")]
    z = [values(case, at(i, "z"))[0][:, -1] for i in range(3)]
    if "ln1_post" in case.model.bridge.blocks[0]._modules:
        expected = [heads.head_writes(case.model, i, z[i]).norm(dim=-1).T for i in range(3)]
        close(found, torch.stack(expected))
        return
    for layer in range(3):
        expected = [write(case, Component(layer, h))[:, -1].norm(dim=-1) for h in range(4)]
        close(found[layer], torch.stack(expected))


def direct_writes(case):
    """What the logits lose without a head's write."""
    vocabulary = vocabulary_module.vocabulary("months", case.model.tokenizer)
    seen = observation.observe(case.model, case.prompts)
    found = writes.direct_writes(case.model, seen, case.prompts, vocabulary)
    z = values(case, at(1, "z"))[0][:, -1]
    gone = heads.head_writes(case.model, 1, z)[:, 2]  # held to the stream above
    if "ln1_post" not in case.model.bridge.blocks[0]._modules:
        gone = write(case, Component(1, 2))[:, -1]

    def without(value, hook):
        return torch.cat([value[:, :-1], value[:, -1:] - gone[:, None]], 1)

    lost = values(case)[-1] - values(case, hooks=[(at(2, "out"), without)])[-1]
    members = torch.tensor([i for i in vocabulary.ids if i is not None])
    rows = torch.arange(3)
    others = lost[:, members].clone()
    pair = [case.prompts.answer_ids, case.prompts.last_ids]
    for ids in pair:
        others[ids[:, None] == members] = 0
    rest = others.sum(-1) / (len(members) - 2)
    for name, ids in zip(("next", "last"), pair, strict=True):
        close(found[name][1, 2], lost[rows, ids] - rest, 1e-4)


def lenses(case):
    """The logit lens: at the start, between attention and MLP, and at the end."""
    vocabulary = vocabulary_module.vocabulary("months", case.model.tokenizer)
    seen = observation.observe(case.model, case.prompts)
    found = lens.lens(case.model, seen, case.prompts)
    rows = torch.arange(3)
    _, whole = attribution.member_lens(case.model, case.prompts, vocabulary)
    streams = [(0, values(case, at(0, "in"))[0]), (2, values(case, at(1, "in"))[0])]
    still = put(at(1, "mlp_out"), torch.zeros(()))
    streams.append((3, values(case, at(1, "out"), hooks=[still])[0]))
    streams.append((6, values(case, at(2, "out"))[0]))
    for place, stream in streams:
        read = values(case, hooks=[put(at(2, "out"), stream)])[-1].double().log_softmax(-1).float()
        close(found.next[place].log(), read[rows, case.prompts.answer_ids])
        if place % 2 == 0:
            close(whole[place // 2][:, -1].log(), read[:, list(vocabulary.ids)])


CELLS = (ablations, estimates, mlp_writes, paths, edges, direct, positions)
CELLS += (values_alone, sizes, direct_writes, lenses)
NORM, SIDE = "what its heads write together", "does not run attention and then the MLP"
NORMED = dict.fromkeys(("gemma2", "gemma3", "olmo2"), NORM)
BESIDE = dict.fromkeys(("opt", "bloom", "neox", "phi", "cohere", "falcon"), SIDE)
REFUSED = {
    "paths": NORMED,
    "edges": NORMED | BESIDE,
    "direct": {"gemma2": "caps its logits", "olmo2": "final norm with weights"},
}
"""What is refused, and the reason; all else is right."""


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def test_right_or_refused(case, cell):
    reason = REFUSED.get(cell.__name__, {}).get(case.name)
    if reason is None:
        cell(case)
    else:
        with pytest.raises(UserError, match=reason) as caught:
            cell(case)
        assert "\n" not in str(caught.value)


def test_a_model_that_projects_its_last_stream_is_refused(tmp_path, tokenizer, sets):
    options = CONFIGS["opt"][1] | {"word_embed_proj_dim": 16}
    config = transformers.OPTConfig(vocab_size=len(tokenizer), **options)
    model = loading.load(str(save_random(config, tmp_path / "opt", tokenizer)), "cpu")
    new = replay.record(model, sets.means).activations.mean()
    with pytest.raises(UserError, match="final norm and unembedding alone"):
        Evaluator(model, sets.evaluation, new)
    run = replay.record(model, sets.evaluation)
    with pytest.raises(UserError, match="final norm and unembedding alone"):
        text.losses(run, sets.evaluation.tokens, [[]], new)
    with pytest.raises(UserError, match="final norm and unembedding alone"):
        answers.answered(model, [((1, 5, 6, 7), 1)])
    with pytest.raises(UserError, match="final norm and unembedding alone"):
        attribution.member_lens(
            model, sets.evaluation, vocabulary_module.vocabulary("months", tokenizer)
        )


def test_a_model_without_heads_is_refused(tmp_path, tokenizer, sets):
    options = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **SIZES}
    config = transformers.MambaConfig(vocab_size=len(tokenizer), pad_token_id=0, **options)
    model = loading.load(str(save_random(config, tmp_path / "mamba", tokenizer)), "cpu")
    with pytest.raises(UserError, match="has a layer without heads"):
        replay.record(model, sets.means)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_wiring_is_seen_in_half_precision(tmp_path, tokenizer, dtype):
    lacks = {"granite": set(), "gemma2": {"heads", "linear"}, "neox": {"in_turn"}}
    for name, expected in lacks.items():
        kind, options = CONFIGS[name]
        config = getattr(transformers, kind)(vocab_size=len(tokenizer), **options)
        path = save_random(config, tmp_path / name, tokenizer)
        found = capabilities.wiring(loading.load(str(path), "cpu", dtype))
        assert found.lacks == expected
        factor = 0.22 if name == "granite" else 1
        assert found.attention == pytest.approx([factor] * 3, rel=5e-3)
        assert found.mlp == pytest.approx([factor] * 3, rel=5e-3)

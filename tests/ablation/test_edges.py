"""Edge circuits against plain passes, and against TransformerLens' own edge tools."""

import dataclasses

import pytest
import torch
from oracles import evaluator_of
from transformer_lens.tools.analysis import attribution_patching as theirs
from transformer_lens.utilities.statistics import derive_generator

from seqcirc_utils.ablation import paths, replay
from seqcirc_utils.ablation.edges import EdgeEvaluator, EdgePruning
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import Activations
from seqcirc_utils.circuits import edge_search
from seqcirc_utils.components import Component, Edge, components, edges_of
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import drawing, scores


def plainly(evaluator, nodes, kept):
    """The slow, obvious way: component by component, each on an input of its own, whole passes."""
    model, new = evaluator.model, evaluator.replacement
    blocks = model.bridge.blocks

    def head_write(z, layer, head):
        return z @ blocks[layer].attn.W_O[head]

    def run(layer, given, seen):
        """One block with some hooks' values given; the value at ``seen`` is returned."""
        found = []
        hooks = [(name, lambda value, hook, new=new: new) for name, new in given.items()]
        hooks.append((seen, lambda value, hook: found.append(value.clone())))
        with model.bridge.hooks(fwd_hooks=hooks):
            blocks[layer](evaluator.run.residual[layer], **evaluator.run.block_arguments[layer])
        return found[-1]

    change = {}

    def read(receiver, source):
        """Embedding, everything replaced below, and the changes that kept edges carry."""
        total = evaluator.run.residual[0].clone()
        for layer in range(model.n_layers):
            if receiver is not None and layer > receiver.layer:
                break
            if receiver is None or layer < receiver.layer or receiver.head is None:
                for head in range(model.n_heads):
                    total = total + head_write(new.z[layer][:, :, head], layer, head)
                bias = blocks[layer].attn.b_O
                total = total + (0 if bias is None else bias)
            if receiver is None or layer < receiver.layer:
                total = total + new.mlp[layer]
        for edge in kept:
            if edge.receiver == receiver and edge.source == source:
                total = total + change[edge.sender]
        return total

    with torch.no_grad():
        for node in sorted(nodes, key=lambda c: (c.layer, 99 if c.head is None else c.head)):
            name = f"blocks.{node.layer}."
            if node.head is None:
                stream = read(node, "")
                write = run(node.layer, {f"{name}ln2.hook_in": stream}, f"{name}hook_mlp_out")
                change[node] = write - new.mlp[node.layer]
                continue
            parts = {}
            for source in "qkv":
                at = f"{name}attn.hook_{source}"
                parts[at] = run(node.layer, {f"{name}hook_in": read(node, source)}, at)
            z = run(node.layer, parts, f"{name}attn.hook_z")[:, :, node.head]
            change[node] = head_write(z - new.z[node.layer][:, :, node.head], *node)
        final, name = read(None, ""), f"blocks.{model.n_layers - 1}.hook_out"
        hooks = [(name, lambda value, hook: final)]
        logits = model.bridge.run_with_hooks(evaluator.prompts.tokens, fwd_hooks=hooks)[:, -1]
    return scores.Scores.read(logits, evaluator.answers).logit_diff


def some(everything, share, seed):
    """A random part of some edges."""
    rng = derive_generator(seed, "edges")
    return [e for e in everything if torch.rand((), generator=rng) < share]


NODES = [Component.parse(n) for n in "0.0 0.1 0.3 mlp0 1.1 1.2 1.3 mlp1 2.0 2.1 mlp2".split()]


@pytest.fixture(scope="session")
def mistral(tmp_path_factory, tokenizer):
    """Rotary, shared keys and values, and a window shorter than the prompts."""
    from transformers import AutoModelForCausalLM, MistralConfig

    path = tmp_path_factory.mktemp("tiny") / "mistral"
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return loading.load(str(path), "cpu")


@pytest.fixture(params=["gpt2", "llama", "mistral"])
def model(request, tiny):
    return request.getfixturevalue("mistral") if request.param == "mistral" else tiny[request.param]


def circuit_of(model, sets, nodes=NODES, resample=False, **options):
    new = replay.record(model, sets.corrupted if resample else sets.means).activations
    new = new if resample else new.mean()
    return EdgeEvaluator(Evaluator(model, sets.evaluation, new, **options), nodes)


@pytest.mark.parametrize("resample", [False, True])
def test_edge_circuits_equal_plain_passes(model, sets, resample):
    circuit = circuit_of(model, sets, resample=resample, max_rows=13)
    candidates = [circuit.edges, []]
    candidates += [some(circuit.edges, share, i) for i, share in enumerate([0.9, 0.5, 0.5, 0.2])]
    candidates += [[e for e in circuit.edges if e != cut] for cut in circuit.edges[::29]]
    fast = circuit.differences(candidates)
    for found, kept in zip(fast, candidates, strict=True):
        slow = plainly(circuit.evaluator, NODES, kept)
        torch.testing.assert_close(found, slow, atol=1e-5, rtol=1e-5)
    assert fast.std(0).min() > 1e-3  # the sets differ


def test_all_edges_are_the_node_circuit_and_none_replaces_everything(model, sets):
    circuit = circuit_of(model, sets)
    found = circuit.differences([circuit.edges, []])
    expected = circuit.evaluator.kept([NODES, []]).logit_diff
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(circuit.score, expected[0], atol=1e-5, rtol=1e-5)
    assert (expected[0] - expected[1]).abs().min() > 1e-3


def test_batch_size_does_not_matter(model, sets):
    cuts = [[e] for e in edges_of(NODES)[::5]]
    results = [circuit_of(model, sets, max_rows=rows).without(cuts) for rows in (1, 12, 1000)]
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, atol=1e-5, rtol=1e-5)


def test_pruning_equals_running_anew(model, sets):
    circuit = circuit_of(model, sets)
    pruning, gone = EdgePruning(circuit), []
    for i in range(6):
        step = some([e for e in circuit.edges if e not in gone], 0.15, i)
        found = pruning.try_without(step)
        expected = circuit.without([gone + step])[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        if i % 3:
            pruning.accept()
            gone += step
    torch.testing.assert_close(
        EdgePruning(circuit, gone).score, pruning.score, atol=1e-5, rtol=1e-5
    )


def test_one_edge_between_heads_is_path_patching(model, sets):
    circuit = circuit_of(model, sets, components(model), resample=True)
    sender = Component(0, 2)
    for source in "qkv":
        cuts = [Edge(sender, Component(2, head), source) for head in range(4)]
        expected = paths.path_effects(
            circuit.evaluator, sender, [e.receiver for e in cuts], source
        ).logit_diff
        found = circuit.without([[cut] for cut in cuts])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def as_theirs(edge, positions, n_layers):
    """Our edge as TransformerLens': one for each position."""
    writer = {"kind": "mlp_out", "layer": edge.sender.layer}
    if edge.sender.head is not None:
        writer |= {"kind": "attn_head_out", "head": edge.sender.head}
    if edge.receiver is None:
        reader = {"kind": "logits", "layer": n_layers - 1}
    elif edge.source:
        reader = {"kind": f"{edge.source}_input", "layer": edge.receiver.layer}
        reader["head"] = edge.receiver.head
    else:
        reader = {"kind": "mlp_in", "layer": edge.receiver.layer}
    return [
        (theirs.Node(position=p, **writer), theirs.Node(position=p, **reader)) for p in positions
    ]


def test_edge_circuits_equal_those_of_transformer_lens(gpt2, sets):
    circuit = circuit_of(gpt2, sets, components(gpt2), resample=True)
    kept, prompts = some(circuit.edges, 0.6, 0), sets.evaluation
    found = circuit.differences([kept])[0]
    positions = range(prompts.tokens.shape[1])
    same = [pair for e in kept for pair in as_theirs(e, positions, 3)]
    for i in range(3):
        clean, corrupt = prompts.tokens[i : i + 1], sets.corrupted.tokens[i : i + 1]

        def difference(logits, i=i):
            return logits[0, -1, prompts.answer_ids[i]] - logits[0, -1, prompts.last_ids[i]]

        # Their graph has edges from the embedding as well; here it is always the prompt's own.
        with theirs._edge_hook_flags(gpt2.bridge):
            names = theirs._edge_hook_names(3)
            cache = theirs.cache_activation_and_gradient(
                gpt2.bridge, clean, difference, names, compute_gradient=False
            )
        graph = theirs.enumerate_edges(gpt2.bridge, cache)
        embed = [pair for pair in graph if pair[0].kind == "embed"]
        result = theirs.faithfulness(gpt2.bridge, clean, corrupt, difference, same + embed)
        gap = result.full_metric - result.corrupt_metric
        expected = result.corrupt_metric + result.recovered * gap
        assert found[i].item() == pytest.approx(expected, abs=1e-4)


def test_estimates_equal_those_of_transformer_lens(gpt2, sets):
    # Theirs: (clean - corrupt) times the gradient on the corrupt run. So the corrupt run is ours to
    # evaluate, and the clean one the replacement: (replacement - write) is the same, with its sign.
    clean = replay.record(gpt2, sets.evaluation[range(2)]).activations
    corrupt, answers = sets.corrupted[range(2)], sets.evaluation[range(2)]
    evaluator = Evaluator(gpt2, corrupt, clean, answers=answers)
    found = EdgeEvaluator(evaluator, components(gpt2)).estimate()
    totals = dict.fromkeys(found, 0.0)
    positions = range(corrupt.tokens.shape[1])
    start = gpt2.bridge.embed.hook_out.register_forward_hook(
        lambda module, args, out: out.detach().requires_grad_(torch.is_grad_enabled())
    )
    try:
        for i in range(2):
            answer, last = int(answers.answer_ids[i]), int(answers.last_ids[i])
            result = theirs.attribution_patch(
                gpt2.bridge,
                answers.tokens[i : i + 1],
                corrupt.tokens[i : i + 1],
                lambda logits, a=answer, b=last: logits[0, -1, a] - logits[0, -1, b],
                theirs.EdgeAttributionConfig(granularity="edge"),
            )
            for edge in totals:
                for pair in as_theirs(edge, positions, 3):
                    totals[edge] += result.edge_scores[pair] / 2
    finally:
        start.remove()
    assert len(found) == len(edges_of(components(gpt2)))
    for edge, value in found.items():
        assert value == pytest.approx(totals[edge], abs=1e-5)
    assert max(map(abs, found.values())) > 1e-2


def test_estimates_are_exact_where_little_changes(model, sets):
    own = replay.record(model, sets.evaluation).activations
    far = replay.record(model, sets.corrupted).activations
    near = Activations(*(a + 1e-3 * (b - a) for a, b in ((own.z, far.z), (own.mlp, far.mlp))))
    circuit = EdgeEvaluator(Evaluator(model, sets.evaluation, near), components(model))
    kept = some(circuit.edges, 0.7, 0)
    estimate = circuit.estimate(kept)
    assert set(estimate) == set(kept)
    chosen = sorted(kept, key=lambda e: -abs(estimate[e]))[:12]
    before = circuit.differences([kept]).mean().item()
    without = circuit.differences([[e for e in kept if e != cut] for cut in chosen]).mean(1)
    for edge, after in zip(chosen, without.tolist(), strict=True):
        assert after - before == pytest.approx(estimate[edge], rel=0.05, abs=2e-6)


def test_estimates_on_fewer_prompts_are_those_of_these_prompts(gpt2, sets):
    whole = circuit_of(gpt2, sets, resample=True)
    first = replay.record(gpt2, sets.corrupted[range(2)]).activations
    two = EdgeEvaluator(Evaluator(gpt2, sets.evaluation[range(2)], first), NODES)
    some_of_it, alone = whole.estimate(rows=2), two.estimate()
    assert some_of_it == pytest.approx(alone, abs=1e-6)
    assert whole.estimate() != pytest.approx(alone, abs=1e-4)


def test_models_whose_writes_do_not_add_up_are_refused(tiny, sets, means):
    evaluator = Evaluator(tiny["gemma2"], sets.evaluation, means["gemma2"])
    with pytest.raises(UserError, match="normalises"):
        EdgeEvaluator(evaluator, NODES)


def test_what_is_not_there_is_refused(gpt2, sets):
    circuit = circuit_of(gpt2, sets)
    with pytest.raises(UserError, match="unknown edge '0.2->mlp1'"):
        circuit.differences([[Edge.parse("0.2->mlp1")]])
    with pytest.raises(UserError, match="unknown component"):
        EdgeEvaluator(circuit.evaluator, [Component(7, 0)])


def test_no_sets_of_edges_give_empty_scores(gpt2, sets):
    circuit = circuit_of(gpt2, sets)
    for found in (circuit.differences([]), circuit.without([])):
        assert found.shape == (0, len(sets.evaluation)) and found.dtype == torch.float32


def test_a_circuit_without_components_has_no_edges(gpt2, sets):
    circuit = circuit_of(gpt2, sets, [])
    assert circuit.edges == [] and circuit.estimate() == {}
    expected = circuit.evaluator.kept([[]]).logit_diff
    torch.testing.assert_close(circuit.differences([[]]), expected, atol=1e-5, rtol=1e-5)


def test_the_edges_of_a_circuit(gpt2):
    found = edges_of([Component.parse(n) for n in ("mlp1", "1.0", "0.1", "mlp0")])
    assert [str(e) for e in found] == (
        "0.1->mlp0 0.1->1.0.q mlp0->1.0.q 0.1->1.0.k mlp0->1.0.k 0.1->1.0.v mlp0->1.0.v "
        "0.1->mlp1 mlp0->mlp1 1.0->mlp1 0.1->logits mlp0->logits 1.0->logits mlp1->logits"
    ).split()
    everything = edges_of(components(gpt2))
    assert [Edge.parse(str(e)) for e in everything] == everything
    for bad in ("4.1", "4.1->9.1", "4.1->9.1.z", "4.1->mlp9.q", "->logits", "4.1->mlp"):
        with pytest.raises(UserError, match="unknown edge"):
            Edge.parse(bad)


def test_no_hook_is_left_behind(gpt2, sets, hooks_left):
    scores.score(gpt2, sets.evaluation)  # TransformerLens adds some of its own in the first run
    before = hooks_left(gpt2)
    circuit = circuit_of(gpt2, sets)
    circuit.estimate()
    circuit.evaluator.run.attention_arguments[0]["attention_mask"] = torch.zeros(1, 1, 3, 5)
    with pytest.raises(RuntimeError):
        circuit.estimate()
    assert hooks_left(gpt2) == before


@pytest.fixture(scope="module")
def able(gpt2, sets, means):
    """Edges on which a random model has something to lose."""
    evaluator = evaluator_of(gpt2, sets.discovery, means["gpt2"])
    return EdgeEvaluator(evaluator, components(gpt2))


def share(circuit, kept):
    whole = circuit.evaluator.intact.logit_diff.mean()
    return (circuit.differences([kept]).mean() / whole).item()


def test_the_published_rule(able):
    threshold, own = 0.99, share(able, able.edges)
    found = edge_search.published(
        able, threshold, effects=edge_search.single_effects(able, screen=0)
    )
    for row in found.table.to_dict("records")[::7]:
        alone = share(able, [e for e in able.edges if str(e) != row["edge"]])
        assert row["score"] == pytest.approx(alone, abs=1e-5) and row["exact"]
        assert row["kept"] == (alone < threshold) == (Edge.parse(row["edge"]) in found.edges)
    assert 0 < len(found.edges) < len(able.edges)
    assert found.score == pytest.approx(share(able, found.edges), abs=1e-5)
    relative = edge_search.published(able, margin=0.02, effects=found.table)
    assert relative.table["kept"].tolist() == (found.table["score"] < 0.98 * own).tolist()
    for options in ({"threshold": 0.0}, {"threshold": 1.1}, {"margin": 0.0}):
        with pytest.raises(UserError, match="must be in"):
            edge_search.published(able, **options)


def test_screened_edges_are_estimated(able):
    plain = edge_search.single_effects(able, screen=0)
    screened = edge_search.single_effects(able, screen=0.01)
    close = (plain["estimate"] - share(able, able.edges)).abs()
    assert (screened["exact"] == (close >= 0.01)).all() and 0 < screened["exact"].mean() < 1
    exact = screened["exact"]
    assert (screened["score"] - plain["score"])[exact].abs().max() < 1e-5
    assert (screened["score"] == screened["estimate"])[~exact].all()
    cuts = {able.edges[-1]: able.edges}  # effects of edges behind each other do not add up
    assert edge_search.single_effects(able, cuts, screen=1e9)["exact"].all()
    none = edge_search.single_effects(able, {})  # a circuit of one head has no edge out of an MLP
    assert none.empty and list(none.columns) == list(plain.columns)


def test_an_interrupted_table_continues(able, tmp_path, monkeypatch):
    path, once, calls = tmp_path / "effects.json", EdgeEvaluator.without, []
    plain = edge_search.single_effects(able, screen=0)

    def breaks(self, sets, **options):
        calls.append(sets)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return once(self, sets, **options)

    monkeypatch.setattr(EdgeEvaluator, "without", breaks)
    with pytest.raises(KeyboardInterrupt):
        edge_search.single_effects(able, screen=0, checkpoint=path)
    continued = edge_search.single_effects(able, screen=0, checkpoint=path)
    assert (continued["score"] - plain["score"]).abs().max() < 1e-6
    receivers = len({e[1:] for e in able.edges})
    assert len(calls) == receivers + 1  # only the broken call was made twice


def test_ranked_ends_where_every_edge_is_needed(able):
    threshold = 0.8
    found = edge_search.ranked(able, threshold)
    assert found.minimal and 0 < len(found.edges) < len(able.edges) / 2
    assert found.score == pytest.approx(share(able, found.edges), abs=1e-5)
    assert found.score >= threshold
    for edge in found.edges:
        assert share(able, found.edges - {edge}) < threshold
    capped = edge_search.ranked(able, threshold, one_by_one=2)
    assert not capped.minimal and capped.edges >= found.edges
    assert (capped.table["phase"] == "one by one").sum() == 2


def test_an_interrupted_search_continues_to_the_same_circuit(able, tmp_path, monkeypatch):
    threshold = 0.8
    whole = edge_search.ranked(able, threshold)
    path, once = tmp_path / "search.json", EdgePruning.try_without
    for stop in (3, 7, 20):
        calls = []

        def breaks(self, names, calls=calls, stop=stop):
            calls.append(names)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return once(self, names)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(EdgePruning, "try_without", breaks)
            edge_search.ranked(able, threshold, checkpoint=path)
    continued = edge_search.ranked(able, threshold, checkpoint=path)
    assert continued.edges == whole.edges
    assert continued.table["component"].tolist() == whole.table["component"].tolist()


def test_a_model_that_cannot_do_the_task_is_refused(gpt2, sets, able):
    prompts = able.evaluator.prompts
    turned = dataclasses.replace(prompts, answer_ids=prompts.last_ids, last_ids=prompts.answer_ids)
    evaluator = Evaluator(gpt2, turned, able.evaluator.replacement)
    circuit = EdgeEvaluator(evaluator, NODES)
    for search in (edge_search.published, edge_search.ranked):
        with pytest.raises(UserError, match="logit difference"):
            search(circuit)


@pytest.mark.model
def test_the_default_model_has_edges_of_its_own_for_heads_that_share_keys(default_model):
    prompts = drawing.prompt_sets(default_model, "months", n_prompts=2, n_means=4)
    nodes = [Component.parse(n) for n in "3.0 3.1 3.3 mlp5 20.3 20.5 mlp20 29.1 mlp29".split()]
    circuit = circuit_of(default_model, prompts, nodes)
    kept = some(circuit.edges, 0.5, 0)
    expected = plainly(circuit.evaluator, nodes, kept)
    torch.testing.assert_close(circuit.differences([kept])[0], expected, atol=1e-4, rtol=1e-4)

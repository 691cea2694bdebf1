"""The chapter to explore, on random models of two tasks: held to whole passes with plain hooks."""

import dataclasses
import json
import re

import kept
import pytest
import torch
from IPython.display import HTML, Markdown
from oracles import plain_logits

from seqcirc_utils.chapters import explore as chapter
from seqcirc_utils.chapters.explore import SHARES, TOKENS, Explore
from seqcirc_utils.components import Component, components
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.figures import explore as figures
from seqcirc_utils.prompts.sequences import TASKS

PARAMETERS = {
    **{"tasks": ["number_words", "months"], "templates": ["born"], "n_prompts": 4, "n_means": 4},
    **{"n_shown": 3, "swap_step": 2, "n_attention": 3, "seed": 0},
}
HEAD, MLP = Component(1, 0), Component(0, None)
CIRCUITS = {
    "number_words": {HEAD, MLP, Component(1, 2)},
    "months": {HEAD, MLP, Component(0, 3), Component(2, None)},
}


def setting(model, circuits=CIRCUITS, **changes):
    return kept.setting(PARAMETERS | changes, model, circuits)


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    where = tmp_path_factory.mktemp("found")
    return kept.kept_and_read(Explore.measure(setting(tiny["gpt2"])), where)


def data_of(found):
    (text,) = re.findall(r'id="explore-data">(.*?)</script>', figures.data(found).data)
    return json.loads(text)


def held(row, logits, answer, last):
    """Hold a row's answer to logits ``[vocab]`` that were made plainly."""
    shares = logits.softmax(-1)
    for token, share in zip(row[TOKENS], row[SHARES], strict=True):
        assert share == pytest.approx(shares[int(token)].item(), rel=1e-3, abs=1e-6)
    assert list(row[SHARES]) == pytest.approx(shares.topk(5).values.tolist(), rel=1e-3)
    if "logit_diff" in row:
        gap = (logits[answer] - logits[last]).item()
        assert row["logit_diff"] == pytest.approx(gap, rel=1e-3, abs=1e-4)


def test_every_answer_is_that_of_a_whole_pass_with_plain_hooks(any_tiny):
    at = setting(any_tiny)
    found = Explore.measure(at)
    core, everything = {HEAD, MLP}, set(components(any_tiny))
    removed = {"intact": set(), "1.0": {HEAD}, "mlp0": {MLP}, "core-off": core}
    removed["core-alone"] = everything - core
    for task, circuit in CIRCUITS.items():
        removed |= {f"{task}-off": circuit, f"{task}-alone": everything - circuit}
    assert found.parts["part"].tolist() == list(removed)
    assert found.parts["n_ablated"].tolist() == list(map(len, removed.values()))
    rows = found.ablated.set_index(["task", "prompt", "part"])
    assert len(rows) == 2 * 3 * len(removed) and rows.index.is_unique
    for task in CIRCUITS:
        prompts = at.sets(task).evaluation[range(3)]
        for part, names in removed.items():
            logits = plain_logits(any_tiny, prompts, names, at.means(task))
            for n in range(3):
                ends = int(prompts.answer_ids[n]), int(prompts.last_ids[n])
                held(rows.loc[(task, n, part)], logits[n], *ends)


def plain_stream(model, tokens, layer):
    """What enters a block, or leaves the last one, at the last token ``[n, d_model]``."""
    name = f"blocks.{layer}.hook_in" if layer < model.n_layers else f"blocks.{layer - 1}.hook_out"
    seen = []
    with torch.no_grad():
        model.bridge.run_with_hooks(
            tokens, fwd_hooks=[(name, lambda value, hook: seen.append(value[:, -1].clone()))]
        )
    return name, seen[0]


def test_every_swap_is_that_of_a_whole_pass_with_a_plain_hook(any_tiny):
    at = setting(any_tiny)
    found = Explore.measure(at)
    rows = found.swaps.set_index(["source", "source_prompt", "base", "base_prompt", "layer"])
    assert rows.index.is_unique and len(rows) == 4 * 9 * 3  # tasks, prompts, layers 0, 2, 3
    vocabularies = {task: TASKS[task].members for task in CIRCUITS}
    for (source, i, base, j, layer), row in rows.iterrows():
        one, other = (at.sets(task).evaluation[[n]] for task, n in ((source, i), (base, j)))
        name, new = plain_stream(any_tiny, one.tokens, layer)
        for sign, task in ((-1, source), (1, base)):
            new = new + sign * plain_stream(any_tiny, at.sets(task).discovery.tokens, layer)[
                1
            ].mean(0)

        def put(value, hook, new=new):
            value = value.clone()
            value[:, -1] = new
            return value

        with torch.no_grad():
            logits = any_tiny.bridge.run_with_hooks(other.tokens, fwd_hooks=[(name, put)])[0, -1]
        held(row, logits, None, None)
        member = vocabularies[base][one.starts[0] + 4]
        assert found.tokens[str(int(row["wanted_id"]))].strip() == member
        shares = logits.softmax(-1)
        for column, token in (
            ("wanted", row["wanted_id"]),
            ("own", other.answer_ids[0]),
            ("token", one.answer_ids[0]),
        ):
            assert row[column] == pytest.approx(shares[int(token)].item(), rel=1e-3, abs=1e-6)


def test_attention_is_that_of_queries_and_keys(any_tiny):
    """Rows are shares of what is visible; the heads' values weighted by them are their outputs."""
    at = setting(any_tiny)
    found = Explore.measure(at)
    assert found.heads.to_numpy().tolist() == [
        ["1.0", "number_words months"],
        ["0.3", "months"],
        ["1.2", "number_words"],
    ]
    assert found.n_heads == 3 and list(found.read) == list(CIRCUITS)
    for place, task in enumerate(CIRCUITS):
        for run, prompts in enumerate((at.sets(task).evaluation, at.sets(task).corrupted)):
            tokens = prompts.tokens[:1]
            assert found.read[task][run] == tokens[0].tolist()
            _, cache = any_tiny.bridge.run_with_cache(tokens)
            for i, name in enumerate(found.heads["head"]):
                layer, head = Component.parse(name)
                shown = torch.tensor(found.attention[place, run, i])
                assert torch.allclose(shown.sum(-1), torch.ones(len(shown)), atol=1e-5)
                assert not shown.triu(1).any()
                values = cache[f"blocks.{layer}.attn.hook_v"][0]
                shared = any_tiny.n_heads // values.shape[-2] if values.ndim == 3 else 1
                mixed = shown @ values[:, head // shared]
                assert torch.allclose(
                    mixed, cache[f"blocks.{layer}.attn.hook_z"][0, :, head], atol=1e-4
                )


def test_the_page_holds_attention_in_percent(found):
    page = data_of(found)
    shown = page["attention"]
    assert shown["heads"][0] == ["1.0", "in all circuits"]
    assert shown["heads"][1] == ["0.3", "in months"]
    for place, (task, _, tokens) in enumerate(shown["reads"]):
        for run, row in enumerate(tokens):
            texts = [page["tokens"][t] for t in row]
            assert texts == [found.tokens[str(i)] for i in found.read[task][run]]
            for i, weights in enumerate(shown["weights"][task][run]):
                told = iter(weights)
                for query in range(len(row)):
                    for key in range(query + 1):
                        exact = 100 * found.attention[place, run, i, query, key]
                        assert abs(next(told) - exact) <= 0.51
                assert next(told, None) is None


def test_the_page_starts_with_a_swap_that_can_be_seen(found):
    swaps = data_of(found)["swaps"]
    source, base = swaps["first"]
    assert source.split(".")[0] != base.split(".")[0]
    answer = {row[0]: row[3] for row in data_of(found)["prompts"]}[base]
    assert swaps["pairs"][f"{source} {base}"][0] != answer  # another place
    assert swaps["layers"] == [0, 2, 3] and len(swaps["pairs"]) == 36
    means = found.swaps[found.swaps["source"] != found.swaps["base"]].groupby("layer")["wanted"]
    assert swaps["layers"][swaps["start"]] == means.mean().idxmax()
    row = found.swaps.iloc[-1]
    name = f"{row['source']}.{row['source_prompt']} {row['base']}.{row['base_prompt']}"
    three = swaps["pairs"][name][1][-1][2]
    assert three == pytest.approx([row["wanted"], row["own"], row["token"]], abs=6e-5)


def test_tokens_and_prompts_are_those_of_the_tasks(found, gpt2):
    listed = found.prompts.set_index(["task", "prompt"])
    assert listed.index.tolist() == [(task, n) for task in CIRCUITS for n in range(3)]
    sets = setting(gpt2).sets("months").evaluation
    assert listed.loc["months", "text"].tolist() == sets.texts[:3]
    assert found.tokens[str(listed.loc[("months", 0), "answer_id"])].strip() == sets.answers[0]
    used = set(found.ablated[TOKENS].to_numpy().ravel()) | set(listed[["answer_id"]].to_numpy()[0])
    assert {str(i) for i in used} <= set(found.tokens)


def test_the_page_holds_the_numbers_of_the_findings(found):
    data = data_of(found)
    assert [row[0] for row in data["parts"]] == found.parts["part"].tolist()
    for row in found.ablated.itertuples():
        place = [p[0] for p in data["parts"]].index(row.part)
        gap, tokens, shares = data["ablated"][f"{row.task}.{row.prompt}"][place]
        assert gap == pytest.approx(row.logit_diff, abs=6e-4)
        assert [data["tokens"][t] for t in tokens] == [
            found.tokens[str(getattr(row, name))] for name in TOKENS
        ]
        assert shares == pytest.approx([getattr(row, name) for name in SHARES], abs=6e-5)
    assert data["parts"][1] == ["1.0", "One shared head", "1.0", "Without head 1.0"]
    assert [
        "months-alone",
        "All but one circuit",
        "months",
        "With the circuit of months alone",
    ] in (data["parts"])


def test_nothing_in_the_data_ends_its_script(found):
    nasty = found.tokens | {next(iter(found.tokens)): "</script><b>"}
    shown = dataclasses.replace(found, tokens=nasty)
    assert "</script><b>" not in figures.data(shown).data
    assert "</script><b>" in data_of(shown)["tokens"]


def test_it_is_shown_and_refused_in_one_line(found, monkeypatch, gpt2):
    assert isinstance(figures.swap(found), HTML)
    assert isinstance(figures.attention(found), HTML)
    assert "$" not in figures.attention(found).data.split("<script>")[0]
    assert "$" not in figures.swap(found).data.split("<script>")[0]
    assert isinstance(figures.parts(found), HTML) and figures.left_out(found) is None
    assert "$" not in figures.parts(found).data.split("<script>")[0]
    monkeypatch.setattr(chapter, "Evaluator", refuses)
    without = Explore.measure(setting(gpt2))
    assert without.ablated.empty and list(without.missing) == ["ablated"]
    assert isinstance(figures.data(without), HTML)
    told = figures.parts(without)
    assert isinstance(told, Markdown) and told.data == "Not here: no logits."
    monkeypatch.setattr(chapter, "Swap", refuses)
    without = Explore.measure(setting(gpt2))
    assert without.swaps.empty and list(without.missing) == ["ablated", "swaps"]
    none = Explore.measure(setting(gpt2, n_attention=0))
    assert "no head to show" in figures.attention(none).data and none.heads.empty
    assert data_of(none)["attention"]["heads"] == []
    assert data_of(without)["swaps"] == {} and figures.swap(without).data == told.data


def refuses(*_, **__):
    raise UserError("no logits.")


def test_tasks_without_a_common_part_or_a_circuit(gpt2):
    apart = {"number_words": {HEAD}, "months": {MLP}}
    kinds = Explore.measure(setting(gpt2, apart)).parts["kind"].tolist()
    assert kinds == ["intact"] + 4 * ["circuit"]
    one = Explore.measure(setting(gpt2, {"months": CIRCUITS["months"]}))
    assert one.left_out == {"Number words": "it cannot be done."}
    assert "Number words: it cannot be done." in figures.left_out(one).data
    with pytest.raises(CannotDo, match="No task has a circuit"):
        Explore.measure(setting(gpt2, {}))


def test_the_likeliest_tokens_come_first():
    ids, shares = chapter.top(torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0, 5.0]]))
    assert ids.tolist() == [[5, 1, 3, 2, 0]]
    row = chapter.said(ids[0], shares[0])
    assert list(row) == [*TOKENS, *SHARES] and row["p_1"] > row["p_2"]

"""Prompts are what they are said to be: token by token, set by set, draw by draw."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import word_tokenizer
from scipy.stats import chisquare
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, Qwen2Config

from seqcirc_utils.errors import UserError
from seqcirc_utils.models import loading
from seqcirc_utils.prompts import drawing, sequences
from seqcirc_utils.prompts import vocabulary as vocabulary_module


def model_with(tokenizer, prepend_id=1):
    """All that writing prompts asks of a model."""
    facts = SimpleNamespace(title="Tiny")
    return loading.Model(None, tokenizer, facts, prepend_id)


@pytest.fixture(scope="module")
def spaced():
    return model_with(word_tokenizer())


@pytest.fixture(scope="module")
def apart():
    return model_with(word_tokenizer(space_apart=True))


def draw(model, task="months", **changes):
    options = {"n_prompts": 18, "n_means": 20, "templates": ("born", "lost", "done")} | changes
    return drawing.prompt_sets(model, task, **options)


def index(prompts):
    members = sequences.TASKS[prompts.task].members
    return [[members.index(m) for m in shown] for shown in prompts.members]


def parts(sets):
    return {n: getattr(sets, n) for n in ("evaluation", "corrupted", "discovery", "means")}


def check_writing(model, task):
    """Every promise about positions, members, answers, for one tokenizer and task."""
    sets = draw(model, task)
    tokenizer = model.tokenizer
    members = sequences.TASKS[task].members
    vocabulary = vocabulary_module.vocabulary(task, tokenizer)
    in_id = tokenizer(" in", add_special_tokens=False)["input_ids"]
    prefix = [] if model.prepend_id is None else [model.prepend_id]
    lengths = set()
    for prompts in parts(sets).values():
        lengths.add(prompts.tokens.shape[1])
        for i, text in enumerate(prompts.texts):
            row = prompts.tokens[i].tolist()
            # The tokens are the text's own, nothing padded or cut.
            assert row == prefix + tokenizer(text, add_special_tokens=False)["input_ids"]
            template = sequences.TEMPLATES[prompts.templates[i]]
            shown = [
                f"{f} {template.verb} in {m}. "
                for f, m in zip(prompts.fillers[i], prompts.members[i], strict=False)
            ]
            end = f"{prompts.fillers[i][-1]} {template.verb} in"
            assert text == "".join(shown) + end + (" " if vocabulary.space_apart else "")
            assert len(set(prompts.fillers[i])) == 5
            # Each position holds what it is said to hold.
            at = prompts.member_positions[i].tolist()
            assert [tokenizer.decode([row[p]]).strip() for p in at] == list(prompts.members[i])
            assert [[row[p]] for p in prompts.in_positions[i].tolist()] == [in_id] * 5
            assert all(a < b for a, b in zip(prompts.in_positions[i].tolist(), at, strict=False))
            gap = len(row) - 1 - prompts.in_positions[i, -1].item()
            assert gap == (1 if vocabulary.space_apart else 0)
            # The answer is the successor; the incorrect answer is the one before it.
            answer = members.index(prompts.answers[i])
            assert prompts.answer_ids[i] == vocabulary.ids[answer]
            assert prompts.last_ids[i] == vocabulary.ids[answer - 1]
        for name, mask in prompts.groups().items():
            assert mask.shape == prompts.tokens.shape, name
        total = torch.stack([m.long() for m in prompts.groups().values()]).sum(0)
        assert (total == 1).all()  # disjoint and complete
        counts = {name: set(m.sum(1).tolist()) for name, m in prompts.groups().items()}
        assert all(counts[f"member {k}"] == {1} for k in range(1, 5))
        assert counts["end"] == {1}
        assert counts["in"] == {4}
    assert len(lengths) == 1
    for prompts in (sets.evaluation, sets.discovery):
        for shown, start, answer in zip(
            index(prompts), prompts.starts, prompts.answers, strict=True
        ):
            assert shown == list(range(start, start + 4))
            assert members[start + 4] == answer
    return sets


@pytest.mark.parametrize("task", sequences.TASKS)
def test_prompts_are_what_they_say_with_spaced_members(spaced, task):
    check_writing(spaced, task)


def test_prompts_are_what_they_say_with_the_space_apart(apart):
    assert vocabulary_module.vocabulary("digits", apart.tokenizer).space_apart
    assert not vocabulary_module.vocabulary("months", apart.tokenizer).space_apart
    sets = check_writing(apart, "digits")
    assert sets.evaluation.texts[0].endswith("in ")
    end = sets.evaluation.groups()["end"]
    assert (sets.evaluation.tokens[end] == apart.tokenizer.convert_tokens_to_ids(" ")).all()


def test_a_tokenizer_that_puts_a_token_in_front_by_itself_does_not_do_so_twice():
    tokenizer = word_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
    )
    assert tokenizer(" May")["input_ids"][0] == 1
    check_writing(model_with(tokenizer), "months")


def test_prompts_are_what_they_say_with_nothing_in_front(spaced):
    check_writing(model_with(spaced.tokenizer, None), "months")


@pytest.mark.model
@pytest.mark.parametrize("task", ["spanish_number_words", "french_months"])
def test_words_that_the_default_tokenizer_splits_are_refused_and_named(default_model, task):
    with pytest.raises(UserError, match=f"{task!r} does not fit the tokenizer of SmolLM2") as error:
        draw(default_model, task)
    assert {"spanish_number_words": "siete", "french_months": "août"}[task] in str(error.value)


@pytest.mark.model
@pytest.mark.parametrize("task", ["digits", "number_words", "months", "days", "letters"])
def test_prompts_are_what_they_say_with_the_default_model(default_model, task):
    sets = check_writing(default_model, task)
    first = default_model.tokenizer.decode([sets.evaluation.tokens[0, 0].item()])
    assert first == "<|endoftext|>"
    # Numbers above nine are two tokens, so nothing beyond nine is shown or asked for.
    highest = {"digits": "9", "number_words": "twelve", "months": "December"}
    highest |= {"days": "Sunday", "letters": "V"}
    assert highest[task] in sets.evaluation.answers
    assert not {"10", "11", "12"} & set(sets.evaluation.answers)


def test_the_same_seed_draws_the_same_prompts_and_another_does_not(spaced):
    one, two, other = draw(spaced), draw(spaced), draw(spaced, seed=1)
    for name, prompts in parts(one).items():
        assert prompts.texts == parts(two)[name].texts
        assert torch.equal(prompts.tokens, parts(two)[name].tokens)
        assert prompts.texts != parts(other)[name].texts


def test_no_two_sets_share_a_prompt_or_fillers(spaced):
    sets = draw(spaced, n_prompts=60, n_means=60)
    seen = []
    for prompts in (sets.evaluation, sets.discovery, sets.means):
        seen += zip(prompts.templates, prompts.fillers, strict=True)
    assert len(seen) == 180 == len(set(seen))
    texts = [text for prompts in parts(sets).values() for text in prompts.texts]
    assert len(texts) == len(set(texts)) == 240


@pytest.mark.parametrize("templates", [("born",), ("lost", "born"), ("done", "lost", "born")])
@pytest.mark.parametrize("without", [(), ("March",), ("June",)])  # 8, 5 and 3 starts
def test_starts_and_templates_and_their_pairs_take_turns(templates, without):
    model = model_with(word_tokenizer(without=without))
    prompts = drawing.clean_prompts(model, "months", 60, templates=templates)
    starts = vocabulary_module.vocabulary("months", model.tokenizer).starts(4)
    assert len(starts) == {(): 8, ("March",): 5, ("June",): 3}[without]
    pairs = list(zip(prompts.starts, prompts.templates, strict=True))
    for kinds, drawn in (
        (starts, prompts.starts),
        (templates, prompts.templates),
        (list(itertools.product(starts, templates)), pairs),
    ):
        for n in range(1, 61):  # as equally often as can be, from the first prompt on
            counts = {drawn[:n].count(kind) for kind in kinds}
            assert max(counts) - min(counts) <= 1, (n, kinds)
    turns = prompts.starts[: len(starts)]
    assert sorted(turns) == starts and prompts.starts == (turns * 20)[:60]


def test_the_first_prompts_are_no_particular_part_of_the_sequence(spaced):
    """Pairs, scored prompts and repeated searches take the first: 0 to 3 alone, once."""
    first = [drawing.clean_prompts(spaced, "months", 4, seed=seed).starts for seed in range(200)]
    assert {tuple(sorted(starts)) for starts in first} >= {(0, 1, 2, 3), (4, 5, 6, 7), (0, 2, 4, 6)}
    counts = np.bincount(np.ravel(first), minlength=8)
    assert chisquare(counts).pvalue > 0.01


def test_every_sentence_and_length_has_names_and_starts_of_its_own(spaced):
    """Prompts of "lost" and "done", which share their things, were the same but for the verb."""
    kinds = [("lost", 4), ("done", 4), ("lost", 3)]
    drawn = [
        drawing.clean_prompts(spaced, "digits", 30, templates=[name], n_members=n)
        for name, n in kinds
    ]
    for one, other in itertools.combinations(drawn, 2):
        alike = sum(a[:4] == b[:4] for a, b in zip(one.fillers, other.fillers, strict=True))
        assert alike <= 1
    assert len({tuple(prompts.starts) for prompts in drawn}) == 3


def test_every_set_alternates_templates(spaced):
    for prompts in parts(draw(spaced, n_prompts=4, n_means=4)).values():
        assert prompts.templates == ["born", "lost", "done", "born"]


def test_one_template_draws_what_it_always_drew(spaced):
    """Numbers of the book hang on these prompts."""
    prompts = draw(spaced, templates=("born",), n_prompts=3).evaluation
    assert prompts.starts == [5, 3, 1] and prompts.fillers == [
        ("Rose", "John", "Martin", "Chris", "Elizabeth"),
        ("Jane", "Mary", "Linda", "Edward", "Laura"),
        ("Victor", "Neil", "Matt", "Samuel", "Jacob"),
    ]


def test_the_tally_tells_what_was_drawn_and_kept(spaced):
    few = draw(spaced, n_prompts=2)
    assert drawing.tally(("born", "lost", "done"), few.evaluation) == "born (1), lost (1), done (0)"
    assert drawing.tally(("born",), few.evaluation) == "born"

    def no_things(prompts):
        return torch.tensor([name != "done" for name in prompts.templates])

    kept = draw(spaced, n_prompts=6, keep=no_things)
    both = drawing.tally(("born", "lost", "done"), kept.evaluation, kept.discovery)
    assert both == "born (6), lost (6), done (0)"


def test_corrupted_prompts_suggest_no_next_member(spaced):
    sets = draw(spaced, n_prompts=80, n_means=80)
    clean, corrupted = sets.evaluation, sets.corrupted
    for prompts in (corrupted, sets.means):
        assert set(prompts.starts) == {-1}
        for shown in index(prompts):
            assert 1 not in [b - a for a, b in zip(shown, shown[1:], strict=False)]
            assert shown[-1] <= shown[-2]
    assert corrupted.fillers == clean.fillers and corrupted.templates == clean.templates
    assert corrupted.answers == clean.answers
    assert torch.equal(corrupted.answer_ids, clean.answer_ids)
    assert torch.equal(corrupted.last_ids, clean.last_ids)
    assert torch.equal(corrupted.member_positions, clean.member_positions)
    assert all(a != b for a, b in zip(corrupted.members, clean.members, strict=True))
    differs = corrupted.tokens != clean.tokens
    allowed = sum(m for name, m in clean.groups().items() if name.startswith("member")).bool()
    assert differs.any(1).all() and not (differs & ~allowed).any()
    assert {i for shown in index(sets.means) for i in shown} == set(range(12))  # all get used


def test_enlarging_one_set_leaves_the_earlier_ones_alone(spaced):
    small = draw(spaced)
    for changes in ({"n_means": 50}, {"n_discovery": 40}):
        large = draw(spaced, **changes)
        assert large.evaluation.texts == small.evaluation.texts
        assert large.corrupted.texts == small.corrupted.texts
    means = draw(spaced, n_means=50)
    assert means.discovery.texts == small.discovery.texts
    assert means.means.texts[:20] == small.means.texts and len(means.means) == 50
    assert draw(spaced, n_discovery=40).discovery.texts[:18] == small.discovery.texts


@pytest.mark.parametrize("count", ["n_prompts", "n_means", "n_discovery"])
@pytest.mark.parametrize("n", [0, -1, "3", True, 2.0])
def test_a_bad_count_is_refused(spaced, count, n):
    with pytest.raises(UserError, match=f"{count} must be a whole number.*got {n!r}"):
        draw(spaced, **{count: n})


def test_a_bad_count_of_clean_prompts_is_refused(spaced):
    with pytest.raises(UserError, match="n must be a whole number"):
        drawing.clean_prompts(spaced, "months", 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "month"}, "unknown task 'month'.*did you mean 'months'"),
        ({"templates": ("bron",)}, "unknown template 'bron'.*did you mean 'born'"),
        ({"templates": ()}, "no template asked for"),
    ],
)
def test_an_unknown_task_or_template_is_refused(spaced, changes, said):
    with pytest.raises(UserError, match=said):
        draw(spaced, **changes)


def test_a_split_member_is_never_shown_nor_asked_for():
    model = model_with(word_tokenizer(without=("March",)))
    assert len(model.tokenizer(" March", add_special_tokens=False)["input_ids"]) == 2
    sets = draw(model)
    assert vocabulary_module.vocabulary("months", model.tokenizer).ids[2] is None
    assert set(sets.evaluation.starts) == set(range(3, 8))
    for prompts in parts(sets).values():
        assert "March" not in " ".join(prompts.texts) and "March" not in prompts.answers


def test_a_task_that_the_tokenizer_splits_is_refused_and_named():
    model = model_with(word_tokenizer(without=("March", "July", "November")))
    with pytest.raises(UserError, match="does not fit the tokenizer of Tiny") as error:
        draw(model)
    assert "split: March, July, November" in str(error.value)
    with pytest.raises(UserError, match="fewer members"):
        draw(model)
    assert len(drawing.clean_prompts(model, "months", 3, n_members=2)) == 3


def test_a_tokenizer_that_drops_a_part_of_the_prompt_is_refused(tmp_path):
    """Transformers reads whatever is saved for this model type with rules of its own."""
    saved = word_tokenizer()
    Qwen2Config(vocab_size=len(saved)).save_pretrained(tmp_path)
    saved.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"\(Qwen2Tokenizer\) drops '.+' from "):
        draw(model_with(read))


def test_prompts_of_unequal_length_are_refused(spaced, monkeypatch):
    # A name whose neighbourhood costs one token more: what tokenizers do to some pairs of words.
    encode = spaced.tokenizer

    class Uneven:
        def __getattr__(self, name):
            return getattr(encode, name)

        def __call__(self, text, **options):
            found = encode(text, **options)
            if len(text) > 40 and next(calls) == 1:  # one whole prompt of several
                found["input_ids"] = [*found["input_ids"], found["input_ids"][-1]]
            return found

    calls = itertools.count()
    uneven = model_with(Uneven())
    length = drawing.clean_prompts(spaced, "months", 3).tokens.shape[1]
    said = rf"the prompts of 'months' have \[{length}, {length + 1}\] tokens .* of one length"
    with pytest.raises(UserError, match=said):
        drawing.clean_prompts(uneven, "months", 3)


def test_a_template_whose_fillers_are_split_is_refused(monkeypatch, spaced):
    monkeypatch.setitem(
        sequences.TEMPLATES, "born", sequences.Template("born", tuple(f"Ab{i}" for i in range(20)))
    )
    with pytest.raises(UserError, match="'born' has only 0 single-token fillers"):
        draw(spaced, templates=("born",))


@pytest.mark.parametrize("n_members", [1, 2, 6, 11])
def test_any_number_of_members_can_be_shown(spaced, n_members):
    prompts = drawing.clean_prompts(spaced, "months", 12, n_members=n_members)
    assert prompts.member_positions.shape == (12, n_members)
    assert {len(m) for m in prompts.members} == {n_members}
    for shown, answer in zip(index(prompts), prompts.answers, strict=True):
        assert answer == sequences.TASKS["months"].members[shown[-1] + 1]
    assert set(prompts.starts) == set(range(12 - n_members))


def test_too_many_members_are_refused(spaced):
    with pytest.raises(UserError, match="no 13 consecutive members"):
        drawing.clean_prompts(spaced, "months", 3, n_members=12)


def test_a_filter_that_keeps_all_changes_nothing(spaced):
    plain = draw(spaced)
    kept = draw(spaced, keep=lambda p: torch.ones(len(p), dtype=torch.bool))
    assert {n: p.texts for n, p in parts(kept).items()} == {
        n: p.texts for n, p in parts(plain).items()
    }
    assert kept.drawn == plain.drawn == 36


def test_a_filter_that_keeps_nothing_is_refused_after_a_while(spaced):
    with pytest.raises(UserError, match="kept 0 of 360 months prompts, 18 are needed"):
        draw(spaced, keep=lambda p: torch.zeros(len(p), dtype=torch.bool))


def test_a_filter_that_keeps_half_draws_twice_as_many(spaced):
    def even(prompts):
        return torch.arange(len(prompts)) % 2 == 0

    sets = draw(spaced, keep=even)
    assert len(sets.evaluation) == len(sets.discovery) == 18
    assert sets.drawn == 2 * 36
    plain = draw(spaced, n_prompts=36)
    assert sets.evaluation.texts[:9] == plain.evaluation.texts[:18:2]


def test_a_filter_holds_for_all_that_is_kept(spaced):
    def early(prompts):
        return torch.tensor([s < 3 for s in prompts.starts])

    sets = draw(spaced, keep=early)
    assert {*sets.evaluation.starts, *sets.discovery.starts} == {0, 1, 2}
    assert torch.equal(sets.corrupted.answer_ids, sets.evaluation.answer_ids)


def test_rows_can_be_picked(spaced):
    prompts = draw(spaced).evaluation
    some = prompts[[4, 1]]
    assert len(some) == 2 and some.texts == [prompts.texts[4], prompts.texts[1]]
    assert torch.equal(some.tokens, prompts.tokens[[4, 1]])
    assert some.answers == [prompts.answers[4], prompts.answers[1]] and some.task == "months"
    frame = some.frame()
    assert frame["answer"].tolist() == some.answers
    assert frame["last member"].tolist() == [m[-1] for m in some.members]

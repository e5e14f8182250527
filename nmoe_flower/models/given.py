"""Given extractors: a network that somebody else trained, frozen, cut and pooled to latents.

Nothing of the network travels or is kept in a run: only a hash of its weights and of all that
decides the latents, by which devices know that their latents mean the same.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.catalogue import GIVEN, found
from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.models.extractor import Extractor

__all__ = [
    "HASH",
    "FrozenBackbone",
    "Given",
    "PretrainedExtractor",
    "TextWish",
    "Wish",
    "digest_of",
    "frozen_backbone",
    "given_extractor",
    "keep_maps",
]

HASH: Final = "hash"
_FORM: Final = 1  # of what is hashed, and of how latents are made
_MEAN, _DEVIATION = 0.5, 0.25  # of `nmoe_flower.data.normalise`, which made the images
_HELD: Final = 2  # backbones a process keeps

Pooled = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class TextWish:
    """What is asked of a backbone that reads text.

    Attributes:
        window: Tokens of a document at most, T.
        bytes: Whether the tokens are the bytes of UTF-8.
        widths: Widths of the blocks of a ``small-lm`` without weights.
        cache: Folder in which converted weights are kept.
    """

    window: int
    bytes: bool
    widths: tuple[int, ...]
    cache: Path


@dataclass(frozen=True)
class Wish:
    """What a configuration asks for.

    Attributes:
        backbone: Name of the network, as in ``extractor.backbone``.
        weights: Where its weights are, as in ``extractor.weights``; empty: its own.
        resolution: Side that images are brought to, in pixels; 0: that it was made for.
        cut: Stages and grids, ``STAGE:GRID``; empty: where it is cut by itself.
        mirror: Whether latents average those of an image and of its mirror image.
        in_channels: Channels of the images.
        image_size: (height, width) of the images.
        text: What is asked of one that reads text; None: it reads images.
    """

    backbone: str
    weights: str = ""
    resolution: int = 0
    cut: tuple[str, ...] = ()
    mirror: bool = False
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    text: TextWish | None = None


@dataclass(frozen=True)
class Given:
    """A network somebody trained, and how it wants to be asked.

    Attributes:
        network: Images [B, channels, R, R] to whatever it gives.
        weights: SHA-256 of its weights.
        resolution: Side R that it was made for; 0: the images stay as they are.
        mean: Subtracted from the channels of images in 0..1.
        deviation: What they are divided by.
        channels: Channels it wants; grey images are repeated.
        cut: Where it is cut if nothing else is said; empty: ``pooled``.
        pooled: What gives features [B, D] of images, where there is no cut.
        within: What stands before the names of its stages.
    """

    network: nn.Module
    weights: bytes
    resolution: int
    mean: tuple[float, ...] = (_MEAN,)
    deviation: tuple[float, ...] = (_DEVIATION,)
    channels: int = 3
    cut: tuple[str, ...] = ()
    pooled: Pooled | None = None
    within: str = ""


def digest_of(state: Mapping[str, Tensor], *, kind: str = "") -> bytes:
    """SHA-256 of weights: names, types, shapes and bytes, whatever their order.

    Runs and bundles keep it, so it stays as it is.

    Args:
        state: The weights.
        kind: What network they are of, if that counts: hashed first, and shapes before types.
    """
    digest = hashlib.sha256(kind.encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        form = [str(value.dtype), list(value.shape)]
        digest.update(json.dumps([name, *(reversed(form) if kind else form)]).encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


class FrozenBackbone:
    """A given network, never trained, that turns images into raw latents. It is no module.

    Attributes:
        name: What the configuration calls it.
        latent_dim: D, the length of a latent.
        digest: SHA-256 of the weights and of what decides the latents.
        mirror: Whether latents average those of an image and of its mirror image.
        layers: Names of the layers where it is cut, and the grid of each; none: it is not.
        probe: One black image, [1, C, H, W].
        passing: Held during a pass, whose traces in the network belong to one caller.
    """

    def __init__(self, given: Given, wish: Wish) -> None:
        """Freeze, cut and try it.

        Raises:
            ConfigError: It lacks a layer of the cut, or the images are too small for it.
        """
        self._given, self.mirror = given, wish.mirror
        self._resolution = wish.resolution or given.resolution
        self._network = given.network.eval().requires_grad_(False)
        self._network.to(memory_format=torch.channels_last)
        self.passing = threading.Lock()
        self._cut = [_stage(name) for name in wish.cut or given.cut]
        self.name = wish.backbone
        layers = dict(self._network.named_modules())
        self.layers = [(given.within + stage, grid) for stage, grid in self._cut]
        for (stage, grid), (layer, _) in zip(self._cut, self.layers, strict=True):
            if layer not in layers:
                raise ConfigError(
                    f"extractor.cut = {stage}:{grid}: {wish.backbone} has no {stage}; allowed: "
                    f"{_listed(layers, given.within)}"
                )
        told = {
            "form": _FORM,
            "backbone": wish.backbone,
            "resolution": self._resolution,
            "cut": [f"{stage}:{grid}" for stage, grid in self._cut],
            "mirror": wish.mirror,
            "mean": list(given.mean),
            "deviation": list(given.deviation),
        }
        text = json.dumps(told, sort_keys=True).encode()
        self.digest = hashlib.sha256(given.weights + text).digest()
        self.probe = torch.zeros(1, wish.in_channels, *wish.image_size)
        self.latent_dim = self._tried(wish)

    def _tried(self, wish: Wish) -> int:
        """Run one image through; D."""
        side = self._resolution or "x".join(map(str, wish.image_size))
        try:
            with torch.inference_mode():
                latents = self(self.probe)
        except ConfigError:
            raise
        except Exception as error:  # whatever a network raises on maps that are too small
            raise ConfigError(
                f"extractor.backbone = {wish.backbone} cannot look at images of {side} pixels "
                f"(extractor.resolution): {type(error).__name__}: {error}"
            ) from error
        if latents.ndim != 2 or not len(latents) or not bool(latents.isfinite().all()):
            raise ConfigError(
                f"extractor.backbone = {wish.backbone} gives latents {tuple(latents.shape)} of an "
                "image; allowed: finite numbers [1, D]"
            )
        return int(latents.shape[1])

    def __deepcopy__(self, memo: object) -> "FrozenBackbone":
        return self

    @property
    def network(self) -> nn.Module:
        """The network itself, which all extractors of a process share."""
        return self._network

    def __call__(self, images: Tensor) -> Tensor:
        """Raw latents [B, D], float32, of images [B, C, H, W] as ``data.normalise`` makes them."""
        seen = self.as_wanted(images)
        latents = self._latents(seen)
        if self.mirror:
            latents = (latents + self._latents(seen.flip(-1))) / 2
        return latents

    def as_wanted(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] as the network wants them: its channels, scale and side."""
        given, side = self._given, self._resolution
        if images.shape[1] == 1 and given.channels > 1:
            images = images.expand(-1, given.channels, -1, -1)
        mean, deviation = (
            torch.tensor(values, device=images.device, dtype=images.dtype)[:, None, None]
            for values in (given.mean, given.deviation)
        )
        scaled = images * (_DEVIATION / deviation) + (_MEAN - mean) / deviation
        if side and tuple(scaled.shape[2:]) != (side, side):
            shrinks = side < max(scaled.shape[2:])
            scaled = F.interpolate(
                scaled, size=(side, side), mode="bilinear", align_corners=False, antialias=shrinks
            )
        return scaled.contiguous(memory_format=torch.channels_last)

    def _latents(self, images: Tensor) -> Tensor:
        with self.passing, torch.no_grad(), ExitStack() as hooks:
            self._network.to(images.device)
            if not self._cut:
                pooled = self._given.pooled or (lambda network, batch: network(batch))
                features: Tensor = pooled(self._network, images)
                return features.float()
            maps: dict[str, Any] = {}
            keep_maps(hooks, self._network, maps, [layer for layer, _ in self.layers])
            self._network(images)
        grids = [
            self.gridded(maps.get(layer), number) for number, (layer, _) in enumerate(self.layers)
        ]
        return torch.cat(grids, dim=1)

    def gridded(self, maps: Any, number: int) -> Tensor:
        """What the layer of a stage of the cut gave, pooled to grid x grid: [B, channels * grid^2].

        Args:
            maps: What it gave.
            number: Which stage, from 0.

        Raises:
            ConfigError: They are no maps, or smaller than the grid.
        """
        stage, grid = self._cut[number]
        if isinstance(maps, tuple | list) and maps:
            maps = maps[0]
        if isinstance(maps, Tensor) and maps.ndim == 3 and grid == 1:  # tokens [B, T, channels]
            return maps.float().mean(dim=1)
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ConfigError(
                f"extractor.cut = {stage}:{grid}: {stage} of {self.name} gives {got}; allowed: "
                "maps [B, channels, H, W], or tokens [B, T, channels] with the grid 1"
            )
        if min(maps.shape[2:]) < grid:
            raise ConfigError(
                f"extractor.cut = {stage}:{grid}: the maps of {stage} are "
                f"{maps.shape[3]}x{maps.shape[2]} at extractor.resolution = {self._resolution}; "
                "allowed: a grid of at most that, or a higher resolution"
            )
        return F.adaptive_avg_pool2d(maps.float(), grid).flatten(1)


class PretrainedExtractor(Extractor):
    """A frozen backbone as an extractor, whose only state is the hash of what it is.

    Attributes:
        backbone: What turns images into raw latents; all extractors of a process share it.
        hash: What the latents depend on, uint8 [32].
    """

    hash: Tensor

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.latent_dim = backbone.latent_dim
        own = torch.frombuffer(bytearray(backbone.digest), dtype=torch.uint8)
        self.register_buffer(HASH, own)

    def forward(self, images: Tensor) -> Tensor:
        """Latents [B, D] of images [B, C, H, W]."""
        return self.raw(images)

    def raw(self, images: Tensor) -> Tensor:
        """What the frozen backbone says to images [B, C, H, W]: [B, D], float32."""
        return self.backbone(images)

    def check(self, received: Mapping[str, np.ndarray], *, prefix: str = "") -> None:
        """Refuse a state whose latents would mean something else.

        Raises:
            ReplyError: The hash in it is not that of this backbone.
        """
        theirs = received.get(prefix + HASH)
        ours = self.backbone.digest
        if theirs is not None and theirs.astype(np.uint8).tobytes() != ours:
            raise ReplyError(_differs(theirs.astype(np.uint8).tobytes(), ours))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        theirs = state_dict.get(prefix + HASH)
        if isinstance(theirs, Tensor) and bytes(theirs.flatten().tolist()) != self.backbone.digest:
            args[-1].append(_differs(bytes(theirs.flatten().tolist()), self.backbone.digest))
            return
        super()._load_from_state_dict(state_dict, prefix, *args)


def _differs(theirs: bytes, ours: bytes) -> str:
    return (
        f"this machine's given extractor has the hash {ours.hex()[:16]}, and {theirs.hex()[:16]} "
        "is wanted: its weights (extractor.weights, or the installed package), its cut or its "
        "resolution differ; give every device the same"
    )


def given_extractor(wish: Wish) -> PretrainedExtractor:
    """The extractor that is wished for; its backbone is read once in a process.

    Raises:
        ConfigError: There is none, its weights cannot be read, or it cannot be cut so.
    """
    with torch.device("cpu"):  # wherever shapes are rehearsed: the weights decide the shape
        return PretrainedExtractor(frozen_backbone(wish))


def frozen_backbone(wish: Wish) -> FrozenBackbone:
    """The backbone that is wished for, read once in a process. Raises as `given_extractor`.

    Torch's global stream stays where it is, whether it is read or was: what is drawn next is the
    same in every process.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        return _frozen(wish, _trace(wish.weights), torch.initial_seed())


@lru_cache(maxsize=_HELD)
def _frozen(wish: Wish, trace: object, seed: int) -> FrozenBackbone:
    """Own code may draw its weights, hence the seed."""
    if wish.text is not None:  # whose network knows where it is cut
        opened: Given = found("nmoe_flower.models.text_backbone:reader_of_text")(wish)
        return FrozenBackbone(opened, replace(wish, cut=()))
    library, _, _ = wish.backbone.partition(":")
    row = GIVEN.get(library)
    opened = found(row.opener if row else "nmoe_flower.models.libraries:own_backbone")(wish)
    return FrozenBackbone(opened, wish)


def _trace(weights: str) -> tuple[int, int] | None:
    """Time and size of a file, so that a new one is read anew."""
    path = Path(weights).expanduser()
    if not weights or not path.exists():
        return None
    about = path.stat()
    return about.st_mtime_ns, about.st_size


def _stage(text: str) -> tuple[str, int]:
    stage, _, grid = text.rpartition(":")
    return stage, int(grid)


def keep_maps(
    hooks: ExitStack, network: nn.Module, maps: dict[str, Any], layers: Sequence[str]
) -> None:
    """Let a pass through a network leave in ``maps`` what layers gave, until ``hooks`` close."""
    for layer in layers:
        hooks.callback(
            network.get_submodule(layer).register_forward_hook(_keep(maps, layer)).remove
        )


def _keep(maps: dict[str, Any], layer: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        maps[layer] = output

    return keep


def _listed(layers: Mapping[str, nn.Module], within: str) -> str:
    """The layers that can be named: the outer ones, which are the stages of most networks."""
    names = [
        name.removeprefix(within)
        for name in layers
        if name.startswith(within) and name.removeprefix(within).count(".") <= (not within)
    ]
    shown = [name for name in names if name][:40]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) + 1 else "")

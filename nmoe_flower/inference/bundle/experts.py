"""The adapters a device holds at work on its one copy of the backbone."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from nmoe_flower.backbone import computes_in_bf16, configured_language
from nmoe_flower.config import Config
from nmoe_flower.errors import BundleError, ReplyError
from nmoe_flower.inference.bundle.text_bundle import TextBundle
from nmoe_flower.models import AdaptedLM, Past, split_lm
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import autocast, generator

__all__ = ["OF_ALL", "Drawn", "Session", "TextBackbone", "TextExperts", "TextStep", "Writing"]

OF_ALL = -2  # stands for the adapter of all devices among ids of experts
_SLICE = 16  # windows whose logits are held at once
_SIGNED = "backbone"  # part of an adapter: SHA-256 of what it is for

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Arrays = Mapping[str, np.ndarray[Any, Any]]


class Drawn(NamedTuple):
    """A token that follows a text.

    Attributes:
        token: Number of the token.
        log_probability: How likely it was, in nats, before the temperature.
    """

    token: int
    log_probability: float


class Writing(NamedTuple):
    """How a token is drawn.

    Attributes:
        temperature: What logits are divided by; 0: the likeliest token.
        seed: Seed of the noise, which depends on it and on the place in the text alone: who
            goes on with another's text draws as that one would have.
    """

    temperature: float = 0.0
    seed: int = 0


class TextStep(NamedTuple):
    """What comes next in a text.

    Attributes:
        session: The text so far.
        rows: Tokens [n], or hidden states at the cut [n, d], which follow it.
        how: How the token after them is drawn; None: none is wanted.
    """

    session: "Session"
    rows: npt.NDArray[Any]
    how: Writing | None


class Session:
    """One text at one expert: its keys and values.

    Attributes:
        expert: Device whose adapter reads it.
        lower: What the blocks below the cut keep.
        upper: What those above it keep.
    """

    def __init__(self, expert: int) -> None:
        self.expert = expert
        self.lower = Past()
        self.upper = Past()

    @property
    def seen(self) -> int:
        """Tokens that its adapter has read."""
        return self.upper.length


class TextBackbone:
    """A frozen language model that several sets of adapters may take turns on.

    Args:
        model: With its adapters' layers.
        digest: SHA-256 of its weights.
        config: Configuration that it was opened for.

    Attributes:
        model: With its adapters' layers.
        digest: SHA-256 of its weights.
        split: The model in two halves.
        lock: Held by whoever computes.
        at_work: Adapters and the device of the one that was loaded last.

    Raises:
        ConfigError: It cannot be cut into halves.
    """

    def __init__(self, model: AdaptedLM, digest: bytes, config: Config) -> None:
        self.model = model
        self.digest = digest
        self._shape = _shape(config)
        self.split = split_lm(model)
        self.lock = threading.RLock()
        self.at_work: object = None

    @classmethod
    def open(cls, bundle: TextBundle, *, weights: str = "") -> Self:
        """Open the backbone that a bundle is for.

        Args:
            bundle: The adapters.
            weights: Where this device keeps the backbone's weights; empty: where the run did.

        Raises:
            ConfigError: It cannot be opened or cut.
        """
        config = _at_home(bundle.config, weights)
        opened = configured_language(config, bundle.frequencies().shape[1])
        return cls(*opened, bundle.config)

    def fits(self, bundle: TextBundle) -> bool:
        """Whether the adapters of a bundle may use it, too.

        Args:
            bundle: Adapters of another version, or of another device.
        """
        same = self.digest.hex() == bundle.manifest.backbone
        return same and self._shape == _shape(bundle.config)


class TextExperts:
    """The adapters of a bundle on one frozen backbone. Safe in several threads.

    Args:
        bundle: The adapters.
        backbone: What they are for; others' adapters may use it, too.

    Attributes:
        bundle: The adapters.
        backbone: What they are for.
        context: Longest text in tokens.
        joins: Whether texts of different lengths may go on side by side.
        kept_bytes: Bytes of keys and values that are kept for a token.
        num_tokens: How many tokens text has.

    Raises:
        BundleError: The backbone is another one than the adapters are for.
    """

    def __init__(self, bundle: TextBundle, backbone: TextBackbone) -> None:
        manifest, digest = bundle.manifest, backbone.digest.hex()
        if digest != manifest.backbone:
            raise BundleError(
                f"{bundle.folder} is for the backbone {manifest.backbone[:12]}, and that of "
                f"extractor.backbone = {bundle.config.extractor.backbone} here is {digest[:12]}: "
                "all devices must have the same weights"
            )
        self.bundle = bundle
        self.backbone = backbone
        self._model, self._split = backbone.model, backbone.split
        self.context = self._split.context
        self.joins = self._split.joins
        self.kept_bytes = self._split.kept_bytes
        self.num_tokens = bundle.frequencies().shape[1]
        self._bf16 = computes_in_bf16(bundle.config)
        self._adapters: dict[int, Arrays] = dict(bundle.adapters())
        if (shared := bundle.shared()) is not None:
            self._adapters[OF_ALL] = shared
        self._lock = backbone.lock
        for expert in self._adapters:
            with self._lock:
                self._use(expert)

    @classmethod
    def open(cls, bundle: TextBundle, *, weights: str = "") -> Self:
        """A bundle's adapters on a backbone of their own.

        Args:
            bundle: The adapters.
            weights: Where this device keeps the backbone's weights; empty: where the run did.

        Raises:
            BundleError: They are another backbone's.
            ConfigError: They cannot be opened.
        """
        return cls(bundle, TextBackbone.open(bundle, weights=weights))

    @property
    def held(self) -> frozenset[int]:
        """Devices whose adapters are here, and `OF_ALL` where there is one of all devices."""
        return frozenset(self._adapters)

    def lower(self, tokens: Ints, session: Session | None = None) -> Floats:
        """Hidden states at the cut [N, T, d] of tokens [N, T], by blocks that no adapter changes.

        Args:
            tokens: Those that follow what the session has read.
            session: The text so far; None: there is none.
        """
        with self._lock, torch.inference_mode(), self._autocast():
            found = self._split.lower(self._tensor(tokens), session.lower if session else None)
        return _array(found)

    def upper(self, expert: int, hidden: Floats, session: Session | None = None) -> Floats:
        """Final hidden states [N, T, d] of those at the cut, by an expert.

        Args:
            expert: Device whose adapter is meant, one of ``held``.
            hidden: Hidden states of the tokens that follow what the session has read, [N, T, d].
            session: The text so far; None: there is none.
        """
        with self._lock, torch.inference_mode(), self._autocast():
            self._use(expert)
            found = self._split.upper(self._tensor(hidden), session.upper if session else None)
        return _array(found)

    def offsets(self, expert: int) -> Floats:
        """What an expert adds to the logit of every token, [V].

        Args:
            expert: Device whose adapter is meant, one of ``held``.
        """
        found = self._adapters[expert].get("bias")
        size = self.bundle.num_classes
        return np.zeros(size, np.float32) if found is None else np.asarray(found, np.float32)

    def losses(self, final: Floats, offsets: Floats, truth: Ints) -> Floats:
        """Negative log-likelihood of tokens, in nats: float32 [N, T].

        Args:
            final: Final hidden states of the tokens before them, [N, T, d].
            offsets: What the expert adds to the logits, [V].
            truth: The tokens, [N, T].
        """
        added, found = self._tensor(offsets), []
        for at in range(0, len(final), _SLICE):
            with self._lock, torch.inference_mode(), self._autocast():
                logits = self._split.output(self._tensor(final[at : at + _SLICE])).float() + added
                wanted = self._tensor(truth[at : at + _SLICE])
                lost = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
            found.append(_array(lost.view(wanted.shape)))
        return np.concatenate(found)

    def go_on(self, steps: Sequence[TextStep]) -> list[Drawn | None]:
        """Read what comes next in texts of one expert, all in one pass; draw what follows each.

        Args:
            steps: One of any length; or several of one row each, where texts go on side by side
                (``joins``).
        """
        expert = steps[0].session.expert
        with self._lock, torch.inference_mode(), self._autocast():
            self._use(expert)
            final = self._split.upper(self._read(steps), [one.session.upper for one in steps])
            if all(one.how is None for one in steps):
                return [None] * len(steps)
            logits = self._split.output(final[:, -1]).float() + self._tensor(self.offsets(expert))
            # Some backbones have more logits than there are tokens in text.
            told = logits.log_softmax(1).cpu()[:, : self.num_tokens]
        return [
            None if one.how is None else _drawn(row, one.session.seen, one.how)
            for one, row in zip(steps, told, strict=True)
        ]

    def _read(self, steps: Sequence[TextStep]) -> Tensor:
        """Hidden states at the cut of what comes next, [B, T, d]."""
        found: dict[int, Tensor] = {}
        tokens = [at for at, one in enumerate(steps) if one.rows.ndim == 1]
        if tokens:
            read = self._tensor(np.stack([steps[at].rows for at in tokens]))
            states = self._split.lower(read, [steps[at].session.lower for at in tokens]).float()
            found = dict(zip(tokens, states, strict=True))
        return torch.stack(
            [found[at] if at in found else self._tensor(one.rows) for at, one in enumerate(steps)]
        )

    def _use(self, expert: int) -> None:
        wanted = (self, expert)
        if self.backbone.at_work == wanted:
            return
        parts, wants = dict(self._adapters[expert]), self.bundle.manifest.backbone
        signed = parts.pop(_SIGNED, None)
        name = "shared adapter" if expert == OF_ALL else f"adapter of device {expert}"
        if signed is not None and signed.tobytes().hex() != wants:
            raise BundleError(
                f"{self.bundle.folder}: the {name} is for the backbone "
                f"{signed.tobytes().hex()[:12]}, and the bundle for {wants[:12]}"
            )
        self.backbone.at_work = None
        try:
            self._model.load(parts)
        except ReplyError as error:
            raise BundleError(f"{self.bundle.folder}: the {name} does not fit: {error}") from None
        self.backbone.at_work = wanted

    def _autocast(self) -> Any:
        return autocast(self._bf16, self._model.bias.device)

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self._model.bias.device)


def _drawn(told: Tensor, place: int, how: Writing) -> Drawn:
    """The token that follows.

    Args:
        told: Log-probability of each token, [V].
        place: Where the new token stands in the text, from 0.
        how: How it is drawn.
    """
    scores = told
    if how.temperature > 0:
        stream = generator(derive_seed(how.seed, "token", place))
        uniform = torch.rand(told.shape, generator=stream).clamp_min(1e-20)
        scores = told / how.temperature - (-uniform.log()).log()
    token = int(scores.argmax())
    return Drawn(token, float(told[token]))


def _shape(config: Config) -> tuple[Any, ...]:
    """What decides which layers have adapters, and in which numbers they compute."""
    adapter, run = config.adapter, config.run
    return (
        config.extractor.backbone,
        config.expert.kind,
        config.text.window,
        adapter.blocks,
        adapter.targets,
        adapter.scale,
        adapter.bias,
        run.precision,
        run.device,
    )


def _at_home(config: Config, weights: str) -> Config:
    """The configuration as this device can use it."""
    changes: dict[str, Any] = {"extractor.weights": weights} if weights else {}
    if config.run.device != "cpu" and not torch.cuda.is_available():
        changes["run.device"] = "cpu"
    return Config.parse({**config.flat(), **changes}) if changes else config


def _array(tensor: Tensor) -> Floats:
    return np.asarray(tensor.float().numpy(force=True))

"""Stage 1: how the shared feature extractor is trained."""

import re
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nmoe_flower.catalogue import BACKBONES, GIVEN, LANGUAGE_MODELS, METHODS
from nmoe_flower.config.section import Names, NamesOrOwn, Section, Widths, shown
from nmoe_flower.own_code import FORM, is_own

__all__ = ["ExtractorConfig"]

_NAMED = tuple(name for name, row in GIVEN.items() if not row.names)
_WITH_NAMES = tuple(name for name, row in GIVEN.items() if row.names)

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]

_LARGEST_SIDE, _LARGEST_GRID = 4096, 64
_CUT = re.compile(r"[A-Za-z0-9_.]+:([0-9]{1,9})")
_SHAPES = ("norm", "widths", "stem", "pool")
"""Keys about networks that come along."""


def _stages_and_grids(cut: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is no list of ``STAGE:GRID``."""
    for part in cut:
        match = _CUT.fullmatch(part)
        if match is None or not 1 <= int(match[1]) <= _LARGEST_GRID:
            raise ValueError(
                f"a list of STAGE:GRID with grids of 1 to {_LARGEST_GRID} is wanted, as in "
                f"'4:2, 6:1', got {shown(part)}"
            )
    return cut


class ExtractorConfig(Section):
    """Stage 1: how the shared feature extractor is trained."""

    method: MethodName = Field(
        "fedce",
        description="with labels (fedce), without (fedsc, see contrast), or not at all: given",
    )
    start: str = Field(
        "", description="a finished run's folder, whose extractor is taken; empty: train one"
    )
    reading: Literal["shared-head", "private-heads"] = Field(
        "shared-head", description="one head for all, then split; or a private head each (Eq. 2)"
    )
    backbone: Annotated[
        str,
        NamesOrOwn((*BACKBONES, *_NAMED, *LANGUAGE_MODELS), _WITH_NAMES),
    ] = Field("digits", description="the network; mlp for features, linear only flattens")
    weights: str = Field(
        "", description="of a given backbone: a folder, a file or a hub name; empty: its own"
    )
    resolution: int = Field(
        0, ge=0, le=_LARGEST_SIDE, description="side given backbones see; 0: the backbone's own"
    )
    cut: Annotated[Names, AfterValidator(_stages_and_grids)] = Field(
        (), description="of a given backbone: STAGE:GRID of each pooled stage; empty: its own"
    )
    adapter_rank: int = Field(
        0, ge=0, le=65536, description="fedce on a given backbone: rank of what it trains there"
    )
    adapter_blocks: int = Field(
        4, ge=1, description="of a given backbone: how many of its last ones adapters are on"
    )
    adapter_scale: float = Field(2.0, gt=0, description="of B A: LoRA's alpha over its rank")
    norm: Literal["group", "group-ws", "batch", "frozen"] = Field(
        "group-ws", description="group-ws: GroupNorm with weight-standardised convolutions"
    )
    widths: Widths = Field((), description="channels per stage; empty: the backbone's own")
    stem: str = Field("", description="resnet18: cifar, pool or patch; empty: the backbone's own")
    pool: Literal["last", "last-mean", "last-max", "multi"] = Field(
        "last", description="where the latent is cut; multi adds earlier stages, pooled 3 x 3"
    )
    mirror: bool = Field(
        False, description="outside training: latents average an image and its mirror image"
    )
    head: Literal["expert", "linear"] = Field(
        "expert", description="what stage 1 trains on the latents: an expert's MLP, or one layer"
    )
    rounds: int = Field(120, ge=0, description="of stage 1")
    local_steps: int = Field(1, ge=0, description="steps per round; 0: use local-epochs")
    local_epochs: int = Field(0, ge=0, description="epochs per round; 0: use local-steps")
    batch_size: int = Field(32, ge=1, description="images per client and step")
    learning_rate: float = Field(0.1, gt=0, description="the schedule's peak")
    schedule: Literal["triangular", "cosine", "constant"] = Field(
        "triangular", description="of the learning rate over the rounds"
    )
    warmup: float = Field(0.15, ge=0, lt=1, description="share of the rounds in which it rises")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov")
    momentum_at: Literal["server", "client", "averaged"] = Field(
        "server", description="server: exact momentum averaging for one-step rounds, no bytes"
    )
    server_optimizer: Literal["nesterov", "adamw"] = Field(
        "nesterov", description="takes the clients' mean change as a gradient"
    )
    local_learning_rate: float = Field(
        0.0, ge=0, description="of the clients, if not the schedule's; adamw: 0 means 0.1"
    )
    server_learning_rate: float = Field(1.0, gt=0, description="1: take the clients' mean")
    weight_decay: float = Field(5e-4, ge=0, description="not of biases and norms")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share spread over all classes")
    logit_adjustment: float = Field(0.0, ge=0, description="times the client's log prior")
    dropout: float = Field(0.0, ge=0, lt=1, description="of latents while adapters are trained")
    max_grad_norm: float = Field(0.0, ge=0, description="0: no clipping")
    ema: float = Field(0.0, ge=0, lt=1, description="decay per round; 0: off")
    fraction_train: float = Field(1.0, gt=0, le=1, description="of the clients, every round")

    @model_validator(mode="after")
    def _one_measure_of_work(self) -> Self:
        if (self.local_steps > 0) == (self.local_epochs > 0):
            raise ValueError(
                "set exactly one of local-steps and local-epochs above 0, got "
                f"{self.local_steps} and {self.local_epochs}"
            )
        self._adapters_have_a_backbone()
        if self.stands_on_given or is_own(self.backbone):
            for key in _SHAPES if self.stands_on_given else (*_SHAPES, "mirror"):
                value = getattr(self, key)
                if (
                    key == "widths" and self.backbone == "small-lm"
                ):  # drawn, where it has no weights
                    continue
                if value != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key} = {value} is for the backbones that come along; leave it out with "
                        f"backbone = {self.backbone}"
                    )
        elif (
            self.mirror
            and self.backbone in BACKBONES
            and "features" in BACKBONES[self.backbone].reads
        ):
            allowed = [name for name, row in BACKBONES.items() if "features" not in row.reads]
            raise ValueError(
                f"mirror = true turns images round, and backbone = {self.backbone} reads rows of "
                f"numbers; allowed: {', '.join(allowed)}"
            )
        if self.server_optimizer == "adamw" and self.momentum_at != "server":
            raise ValueError(
                "server-optimizer = adamw has moments of its own: momentum-at must be server, got "
                f"{self.momentum_at}"
            )
        return self

    def _adapters_have_a_backbone(self) -> None:
        """Refuse adapters where nothing is given, or nothing is trained."""
        if not self.adapter_rank:
            for key in ("adapter_blocks", "adapter_scale", "dropout"):
                value = getattr(self, key)
                if value != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key.replace('_', '-')} = {value} is for adapters, and adapter-rank = 0 "
                        "has none: set it above 0"
                    )
        elif self.method != "fedce":
            raise ValueError(
                f"adapter-rank = {self.adapter_rank} is for method = fedce, which trains adapters, "
                f"got {self.method}: use 0"
            )
        elif not is_own(self.backbone) and self.backbone.partition(":")[0] not in GIVEN:
            allowed = (f"{name}:NAME" if row.names else name for name, row in GIVEN.items())
            raise ValueError(
                f"adapter-rank = {self.adapter_rank} adapts what somebody else trained, and "
                f"backbone = {self.backbone} is trained from scratch: use 0, or one of "
                f"{', '.join(allowed)}, {FORM}"
            )

    @property
    def is_given(self) -> bool:
        """Whether every device has the extractor before the run, and nobody trains it."""
        return METHODS[self.method].given

    @property
    def is_adapted(self) -> bool:
        """Whether a given backbone gets adapters, which stage 1 trains."""
        return self.method == "fedce" and self.adapter_rank > 0

    @property
    def stands_on_given(self) -> bool:
        """Whether somebody else trained the network: it is taken as it is, or adapted."""
        return self.is_given or self.is_adapted

    @property
    def steps_with_adamw(self) -> bool:
        """Whether the server's step is AdamW's."""
        return self.server_optimizer == "adamw"

    @property
    def is_trained(self) -> bool:
        """Whether a run trains it in rounds of its own."""
        return not self.is_given and not self.start and self.rounds > 0

    @property
    def shares_head(self) -> bool:
        """Whether stage 1 leaves a head that all clients share."""
        return self.method == "fedce" and self.reading == "shared-head"

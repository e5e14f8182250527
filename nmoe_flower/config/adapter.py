"""Experts of a language model: low-rank adapters on the frozen backbone, and their rivals."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from nmoe_flower.catalogue import ADAPTER_CONTROLS
from nmoe_flower.config.section import Distinct, Floats, Ints, Names, Section, split

__all__ = ["AdapterConfig"]

if TYPE_CHECKING:
    ControlName = str
    StartName = str
else:
    ControlName = Literal[tuple(ADAPTER_CONTROLS)]
    StartName = Literal[
        ("fresh", *(n for n, c in ADAPTER_CONTROLS.items() if c.averaged and not c.large))
    ]
Controls = Annotated[tuple[ControlName, ...], BeforeValidator(split), Distinct]


class AdapterConfig(Section):
    """Experts of a language model: low-rank adapters on the frozen backbone, and their rivals."""

    blocks: Literal["upper", "all"] = Field(
        "upper", description="of the backbone, that are adapted: the upper half, or all"
    )
    targets: Names = Field((), description="linear layers of a block; empty: all of them")
    rank: int = Field(8, ge=1, le=65536, description="of an adapter, r")
    ranks: Ints = Field((), description="one per client, by what its device can hold; empty: rank")
    scale: float = Field(2.0, gt=0, description="of B A: LoRA's alpha over its rank")
    bias: bool = Field(True, description="an offset to the logit of every token, too")
    start: StartName = Field(
        "fresh", description="of experts: as drawn, or an averaged adapter of controls"
    )
    steps: int = Field(240, ge=1, description="of every client, in all")
    averaged_steps: int = Field(
        0, ge=0, description="of every client for an averaged adapter; 0: as many as steps"
    )
    batch_size: int = Field(2, ge=1, description="windows per step")
    learning_rates: Floats = Field(
        (5e-3,), description="AdamW's peaks, along a cosine; of several, validation chooses"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")
    controls: Controls = Field(
        ("frozen", "soup", "uniform", "fedavg"), description="what to compare with"
    )
    local_steps: int = Field(5, ge=1, description="of an averaged adapter in a round")
    moments: Literal["averaged", "fresh"] = Field(
        "averaged", description="AdamW's, of an averaged adapter: averaged, too, or 0 every round"
    )
    averaged_learning_rates: Floats = Field(
        (), description="of averaged adapters; empty: learning-rates"
    )
    times: int = Field(8, ge=2, le=1024, description="how much larger fedavg-large is in rank")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for key in ("learning-rates", "averaged-learning-rates"):
            rates = getattr(self, key.replace("-", "_"))
            if key == "learning-rates" and not rates:
                raise ValueError("learning-rates must hold a number above 0, got none")
            if any(rate <= 0 for rate in rates):
                raise ValueError(f"{key} must be above 0, got {', '.join(map(str, rates))}")
            if len(set(rates)) < len(rates):
                raise ValueError(f"{key} must differ, got {', '.join(map(str, rates))}")
        if any(rank < 1 for rank in self.ranks):
            raise ValueError(f"ranks must be 1 or more, got {', '.join(map(str, self.ranks))}")
        averaged = any(ADAPTER_CONTROLS[name].averaged for name in self.controls)
        if averaged and self.steps_of_averages % self.local_steps:
            key = "averaged-steps" if self.averaged_steps else "steps"
            raise ValueError(
                f"{key} = {self.steps_of_averages} must be a multiple of local-steps = "
                f"{self.local_steps}, so that averaged adapters take as many"
            )
        if self.start != "fresh" and self.start not in self.controls:
            raise ValueError(
                f"start = {self.start} begins experts with an averaged adapter, got controls = "
                f"{', '.join(self.controls)}: add {self.start} to controls, or use start = fresh"
            )
        if self.start != "fresh" and self.ranks:
            raise ValueError(
                f"start = {self.start} is one adapter of one rank for all, got ranks = "
                f"{', '.join(map(str, self.ranks))}: leave ranks out, or use start = fresh"
            )
        return self

    def rank_of(self, client: int) -> int:
        """The rank of a client's adapter.

        Args:
            client: Partition id of the client.
        """
        return self.ranks[client] if self.ranks else self.rank

    @property
    def steps_of_averages(self) -> int:
        """Steps that a client takes for an averaged adapter."""
        return self.averaged_steps or self.steps

    @property
    def rates_of_averages(self) -> tuple[float, ...]:
        """The learning rates that averaged adapters are tried at."""
        return self.averaged_learning_rates or self.learning_rates

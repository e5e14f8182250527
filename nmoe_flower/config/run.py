"""The run itself: name, seed, device, deadlines, checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from nmoe_flower.catalogue import BASELINES, CONTROLS
from nmoe_flower.config.section import ALLOWED, OF_A_FILE, Distinct, Seconds, Section, split

__all__ = ["RunConfig"]

if TYPE_CHECKING:
    ControlName = str
    SystemName = str
else:
    ControlName = Literal[tuple(CONTROLS)]
    SystemName = Literal["networked", "aligned", "language", *BASELINES]
Controls = Annotated[tuple[ControlName, ...], BeforeValidator(split), Distinct]


class RunConfig(Section):
    """The run itself: name, seed, device, deadlines, checkpoints."""

    name: str = Field(
        "nmoe",
        **OF_A_FILE,
        max_length=128,
        description="of the run folder",
    )
    system: SystemName = Field(
        "networked",
        description="three stages (2511.01743), experts on a server (2507.05685), adapters of "
        "a language model, or a published system (`nmoe systems`)",
    )
    out: str = Field("", description="results folder; empty: ./runs, or ~/nmoe-runs under flwr run")
    seed: int = Field(0, ge=0, description="of every random choice")
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|mps|cuda(:\d+)?)$",
        json_schema_extra={ALLOWED: "cpu, mps, cuda, or cuda:N"},
        description="cpu, cuda, cuda:1, mps",
    )
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="auto: bf16 where the device is faster in it"
    )
    controls: Controls = Field(
        tuple(name for name, control in CONTROLS.items() if control.usual),
        description="what to compare with",
    )
    control_epochs: int = Field(0, ge=0, description="0: as many steps as stage 1 took")
    control_learning_rate: float = Field(3e-3, gt=0, description="AdamW's peak for the controls")
    evaluate_every: int = Field(0, ge=0, description="rounds; 0: about ten times in stage 1")
    checkpoint_every: int = Field(0, ge=0, description="rounds; 0: every 5 s, or 30 if slow")
    keep_checkpoints: int = Field(2, ge=1, description="the newest are kept")
    min_replies: int = Field(1, ge=1, description="usable replies a round needs")
    wait_for_all: bool = Field(False, description="never begin with fewer nodes than num-clients")
    connect_timeout: Seconds = Field(120.0, description="seconds to wait for the nodes")
    round_timeout: Seconds = Field(3600.0, description="seconds a round may take")

    @property
    def shows_ridge(self) -> bool:
        """Whether a head that sums gave is a control: where it is named, or the shared one is."""
        return "ridge" in self.controls or "fedavg" in self.controls

    def folder(self, run_id: int) -> Path:
        """Where this run is kept: ``out/name``, or a folder of its own per Flower run."""
        if self.out:
            return Path(self.out).expanduser() / self.name
        return Path.home() / "nmoe-runs" / f"{self.name}-{run_id}"

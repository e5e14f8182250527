"""The second system: a mixture on the server, experts aligned with clients."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from nmoe_flower.catalogue import ALIGNMENT_GATES, POLICIES
from nmoe_flower.config.section import Ints, Section, split

__all__ = ["AlignmentConfig"]

if TYPE_CHECKING:
    PolicyName = str
    GateName = str
else:
    PolicyName = Literal[tuple(POLICIES)]
    GateName = Literal[tuple(ALIGNMENT_GATES)]
DeviceName = Literal["server", "laptop", "phone", "board", "sensor"]
Devices = Annotated[tuple[DeviceName, ...], BeforeValidator(split), Field(max_length=1024)]


class AlignmentConfig(Section):
    """The second system (``run.system = aligned``): experts on the server, aligned with clients."""

    policy: PolicyName = Field("joint", description="who trains which experts")
    experts: int = Field(0, ge=0, description="0: as many as clients")
    capacity: Ints = Field((1,), description="experts per client; a list is repeated over clients")
    rounds: int = Field(30, ge=1, description="of training")
    local_steps: int = Field(20, ge=1, description="per round and client")
    batch_size: int = Field(32, ge=1, description="images or latents per step")
    learning_rate: float = Field(0.05, gt=0, description="SGD's, constant")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov, within a round")
    weight_decay: float = Field(5e-4, ge=0, description="not of biases and norms")
    fraction_train: float = Field(1.0, gt=0, le=1, description="of the clients, every round")
    extractor: Literal["trained", "stage-1", "frozen", "filters"] = Field(
        "trained",
        description="with the experts; before them, by extractor.*; as initialised; random filters",
    )
    filters: int = Field(128, ge=1, description="of the filters extractor: 8 numbers each")
    filter_size: int = Field(6, ge=2, description="of a filter, in pixels")
    filter_stride: int = Field(1, ge=1, description="of the filters")
    gate: GateName = Field(
        "averaged", description="averaged, kept at home, rows with their experts, or solved"
    )
    gate_learning_rate: float = Field(0.0, ge=0, description="the clients'; 0: learning-rate")
    gate_server_rate: float = Field(
        0.0, ge=0, description="AdamW's, along the clients' mean change; 0: their mean as it is"
    )
    gate_decay: float = Field(0.9, ge=0, le=1, description="of closed-form sums, per training")
    gate_ridge: float = Field(0.01, gt=0, description="of the closed form")
    anchor: float = Field(1.0, ge=0, description="weight of the gate's call for held experts")
    balance: float = Field(0.0, ge=0, description="weight of the loss on the server's loads")
    holdout: float = Field(0.1, gt=0, lt=1, description="share of the images for feedback")
    loss_weight: float = Field(0.5, ge=0, le=1, description="of the loss in the reward")
    rate: float = Field(0.3, ge=0, le=1, description="of the newest reward in the fitness")
    decay: float = Field(0.98, ge=0, le=1, description="of the fitness without interaction")
    prior: float = Field(0.5, ge=0, le=1, description="fitness of pairs never tried")
    centred: bool = Field(False, description="fitness relative to the expert's mean")
    exploration: float = Field(0.0, ge=0, description="bonus for pairs seldom tried")
    usage_decay: float = Field(0.8, ge=0, lt=1, description="of the loads")
    fitness_weight: float = Field(1.0, ge=0, description="in the desirability")
    usage_weight: float = Field(1.0, ge=0, description="in the desirability")
    deficit_weight: float = Field(1.0, ge=0, description="in the desirability; joint, sequential")
    scale: Literal["z", "rank", "none"] = Field("z", description="of the fitness, per client")
    lo: int = Field(-1, ge=-1, description="least clients per expert; -1: an even share")
    hi: int = Field(-1, ge=-1, description="most clients per expert; -1: an even share")
    devices: Devices = Field((), description="profiles to draw from; empty: all alike, no clock")
    trace: str = Field("", description="JSON file of devices and events; goes before devices")
    estimate_capacity: bool = Field(False, description="from devices and deadline, up to capacity")
    deadline: float = Field(0.0, ge=0, description="simulated seconds of a round; 0: none")
    top_k: int = Field(1, ge=1, description="experts asked per sample in tests")
    evaluate_every: int = Field(1, ge=1, description="rounds")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.capacity or min(self.capacity) < 0 or max(self.capacity) == 0:
            raise ValueError(
                "alignment.capacity must be numbers of at least 0, not all of them 0, got "
                f"{', '.join(map(str, self.capacity)) or 'none'}"
            )
        if ALIGNMENT_GATES[self.gate].solved and self.extractor == "trained":
            raise ValueError(
                f"alignment.gate = {self.gate} adds up latents over rounds: it needs an extractor "
                "that stays (stage-1, frozen or filters), got trained"
            )
        if self.gate_server_rate and self.gate != "averaged":
            raise ValueError(
                f"alignment.gate-server-rate = {self.gate_server_rate} is for alignment.gate = "
                f"averaged, not {self.gate}"
            )
        if 0 <= self.hi < self.lo:
            raise ValueError(f"alignment.lo is {self.lo}, above alignment.hi = {self.hi}")
        if (self.lo >= 0 or self.hi >= 0) and not POLICIES[self.policy].bounds:
            raise ValueError(
                f"alignment.lo = {self.lo} and hi = {self.hi} are for joint and oracle, not "
                f"{self.policy}: use -1"
            )
        if self.hi == 0:
            raise ValueError(
                "alignment.hi = 0 leaves all experts untrained; allowed: -1, 1 or more"
            )
        if self.estimate_capacity and not (self.devices or self.trace):
            raise ValueError("alignment.estimate-capacity = true needs alignment.devices or trace")
        return self

    def advice(self, clients: int) -> list[str]:
        """What is allowed but rarely meant, in words, for this number of clients."""
        experts = self.experts or clients
        slots = sum(min(self.capacity[i % len(self.capacity)], experts) for i in range(clients))
        notes = []
        if slots < experts:
            notes.append(
                f"alignment.capacity gives {slots} slots a round for {experts} experts: experts "
                "take turns, and some have no client in a round"
            )
        if ALIGNMENT_GATES[self.gate].solved:
            notes.append(
                f"alignment.gate = {self.gate} sends sums and second moments of latents, which are "
                "statistics of the clients' data"
            )
        return notes

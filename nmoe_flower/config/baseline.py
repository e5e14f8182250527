"""Published systems, and the plain ones they must beat."""

from typing import Literal

from pydantic import Field

from nmoe_flower.config.section import Section

__all__ = ["BaselineConfig"]


class BaselineConfig(Section):
    """Published systems and plain rivals (``run.system`` names one: `nmoe systems`)."""

    experts: int = Field(3, ge=1, le=1024, description="K, of the systems that have several")
    size: Literal["head", "net"] = Field(
        "head",
        description="of an expert, if there are several: a head on a shared trunk, or a whole "
        "network",
    )
    trunk: Literal["fresh", "stage-1"] = Field(
        "fresh", description="where every trunk begins: as drawn, or as extractor.* trained it"
    )
    held: int = Field(
        2, ge=1, description="experts a client trains, of systems whose clients hold a part"
    )
    anchors: bool = Field(
        True,
        description="fedjets: each expert has a client that trains it alone, chosen by how many "
        "images of each class each client has",
    )
    neighbours: int = Field(5, ge=0, description="fedmoe-da: other experts that each is mixed with")
    lo: int = Field(-1, ge=-1, description="flex-moe: least clients per expert; -1: an even share")
    hi: int = Field(-1, ge=-1, description="flex-moe: most clients per expert; -1: an even share")
    rounds: int = Field(30, ge=1, description="of training")
    local_steps: int = Field(10, ge=1, description="per round and client")
    batch_size: int = Field(32, ge=1, description="images per step")
    learning_rate: float = Field(0.05, gt=0, description="SGD's, constant")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov, within a round")
    weight_decay: float = Field(5e-4, ge=0, description="not of biases and norms")
    fraction_train: float = Field(1.0, gt=0, le=1, description="of the clients, every round")
    proximal: float = Field(
        0.1, ge=0, description="weight of the distance to the global model; fedprox, ditto"
    )
    tuning_steps: int = Field(200, ge=1, description="of a head, a gate or both at home, at last")
    tuning_learning_rate: float = Field(5e-3, gt=0, description="SGD's, of a head at home")
    tuning_momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov, of a head at home")
    tuning_batch_size: int = Field(
        0, ge=0, description="images per step at home, at last; 0: as batch-size"
    )
    evaluate_every: int = Field(10, ge=0, description="rounds; 0: at the end alone")

"""Stage 3: the shared gate, and how its answers are read."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from nmoe_flower.catalogue import GATES, OBJECTIVES, TEXT_GATES
from nmoe_flower.config.section import Distinct, Floats, NamesOrOwn, Section, split

__all__ = ["GateConfig"]

_NAMES = tuple(GATES)
_USUAL = tuple(name for name, gate in GATES.items() if gate.usual)
Gates = Annotated[
    tuple[Annotated[str, NamesOrOwn((*GATES, *TEXT_GATES))], ...], BeforeValidator(split), Distinct
]


class GateConfig(Section):
    """Stage 3: the shared gate, and how its answers are read."""

    methods: Gates = Field(_USUAL, description="the gates to train and evaluate")
    top_k: int = Field(1, ge=1, description="experts asked per sample")
    home_bias: float = Field(
        0.0, ge=0, le=1e6, description="added to the own expert's score wherever there are scores"
    )
    form: Literal["auto", "linear", "mlp", "metric"] = Field(
        "auto",
        description="linear; one hidden layer; or, for FedGate and the upper bound global, a "
        "projection to embeddings that experts carry, so that devices join and leave without "
        "training; auto: as gate.hidden says",
    )
    hidden: int = Field(0, ge=0, description="0: a linear gate")
    embedding: int = Field(
        32, ge=1, description="numbers of an expert's embedding, at most those of a latent"
    )
    noisy: bool = Field(False, description="noisy top-k while training")
    rounds: int = Field(40, ge=1, description="of FedGate")
    local_steps: int = Field(5, ge=1, description="per round and client")
    batch_size: int = Field(64, ge=1, description="latents per step")
    learning_rate: float = Field(0.05, gt=0, description="falls along a cosine over the rounds")
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd", description="adamw: at the server for FedGate, at the client for the other gates"
    )
    fraction_train: float = Field(0.7, gt=0, le=1, description="exactly round(f N) clients")
    objective: Annotated[str, NamesOrOwn(tuple(OBJECTIVES))] = Field(
        "dense", description="what FedGate minimises on the hold-out"
    )
    temperature: float = Field(1.0, gt=0, description="of the distilled targets")
    balance: float = Field(0.0, ge=0, description="weight of the load-balance loss")
    normalise_gradient: bool = Field(True, description="every gradient has norm 1")
    shortlist: int = Field(
        16,
        ge=0,
        description="experts that a client learns the gate from: its own, the nearest, some at "
        "random; 0, or no fewer than there are: all",
    )
    start: Literal["auto", "zero", "prototypes"] = Field(
        "auto",
        description="where FedGate starts: uniform, or knowing clients by the means of their "
        "normalised latents; auto: the latter where there are shortlists and the gate is linear",
    )
    holdout: float = Field(0.2, gt=0, lt=1, description="share of the training images")
    folds: int = Field(
        0, ge=0, description="2 or more: cross-fit, so that gate and expert train on everything"
    )
    keep: float = Field(0.7, gt=0, le=1, description="RollGate's p: targets that stay at home")
    rolling: Literal["cyclic", "federated"] = Field(
        "cyclic", description="client after client until convergence, or FedAvg of those targets"
    )
    cycles: int = Field(10, ge=1, description="RollGate's limit of cycles through the clients")
    distribution: Floats = Field(
        (), description="RanGate's, a share per expert; empty: uniform; who joins gets their mean"
    )
    prior: Literal["chosen", "own", "em", "none"] = Field(
        "chosen", description="the client-aware prior correction of the +prior rows"
    )

    @property
    def asks_prototypes(self) -> bool:
        """Whether a configured gate needs the mean latent of every client."""
        return any(name in GATES and GATES[name].prototypes for name in self.methods)

    @property
    def is_usual(self) -> bool:
        """Whether no other gates are named than those a run has anyway."""
        return self.methods == _USUAL

    @property
    def asks_frequencies(self) -> bool:
        """Whether a configured gate needs how often each client's text has each token."""
        return any(name in TEXT_GATES and TEXT_GATES[name].frequencies for name in self.methods)

    @field_validator("methods")
    @classmethod
    def _at_least_one_gate(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if not methods:
            raise ValueError(f"name at least one gate of {', '.join(GATES)}")
        return methods

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.form in ("linear", "metric") and self.hidden) or (
            self.form == "mlp" and not self.hidden
        ):
            allowed = "1 or more" if self.form == "mlp" else "0"
            raise ValueError(
                f"form = {self.form} does not go with hidden = {self.hidden}; allowed: {allowed}"
            )
        if self.form == "metric" and self.noisy:
            raise ValueError("noisy = true is for a linear gate or an mlp, got form = metric")
        if self.form == "metric" and self.start == "zero":
            raise ValueError(
                "start = zero leaves embeddings of zeros, which no training moves, got form = "
                "metric; allowed: auto, prototypes"
            )
        if self.folds == 1:
            raise ValueError("folds must be 0 (use a hold-out) or at least 2, got 1")
        if self.distribution:
            positive = sum(share > 0 for share in self.distribution)
            if (
                min(self.distribution) < 0
                or positive < self.top_k
                or max(self.distribution) > 1e300
            ):
                raise ValueError(
                    "distribution must hold numbers of at least 0, "
                    f"{self.top_k} or more of them positive (gate.top-k), got "
                    f"{', '.join(map(str, self.distribution))}"
                )
        return self

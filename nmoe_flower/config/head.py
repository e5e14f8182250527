"""Between stages 1 and 2: a head on the frozen extractor, from sums or by rounds."""

from typing import Literal, Self

from pydantic import Field, model_validator

from nmoe_flower.config.section import Section

__all__ = ["HeadConfig"]


class HeadConfig(Section):
    """A head on the frozen extractor, from sums or by rounds: where experts may start from."""

    method: Literal["fedavg", "sums"] = Field(
        "fedavg", description="by rounds; or solved from sums over all latents, in one exchange"
    )
    components: int = Field(
        0, ge=0, description="sums: principal components that latents are reduced to; 0: none"
    )
    ridge: float = Field(
        0.1, ge=0, le=1, description="sums: shrinkage of covariances, of the head and the gate lda"
    )
    sharpness: float = Field(
        6.0, gt=0, description="sums: the head's logits are so many times its least squares"
    )
    standardise: bool = Field(
        False, description="fedavg: sums make latents of mean 0 and deviation 1 first"
    )
    start: Literal["fresh", "zero", "ridge"] = Field(
        "fresh", description="fedavg: random weights, zeros, or the head that sums give"
    )
    rounds: int = Field(
        0, ge=0, description="one step per client each; 0: no head but that of FedCE"
    )
    batch_size: int = Field(32, ge=1, description="latents per client and round")
    learning_rate: float = Field(4e-3, gt=0, description="AdamW's at the server, falls to 0")
    weight_decay: float = Field(0.5, ge=0, description="AdamW's at the server")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.method == "sums":
            for key, value in (
                ("rounds", self.rounds), ("standardise", self.standardise), ("start", self.start),
            ):  # fmt: skip
                if value != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key} = {str(value).lower()} is for method = fedavg; sums need no "
                        "rounds, and standardise latents anyway: leave it out"
                    )
        elif self.start == "ridge" and not self.standardise:
            raise ValueError(
                "start = ridge needs the sums of standardised latents: set standardise = true"
            )
        elif self.components and self.start != "ridge":
            raise ValueError(
                f"components = {self.components} needs whole sums: use method = sums, or "
                "standardise = true with start = ridge"
            )
        return self

    @property
    def standardises(self) -> bool:
        """Whether sums make latents alike before a head or an expert sees them."""
        return self.method == "sums" or self.standardise

    @property
    def asks_sums(self) -> bool:
        """Whether whole sums are asked for, not only means and squares."""
        return self.method == "sums" or self.start == "ridge"

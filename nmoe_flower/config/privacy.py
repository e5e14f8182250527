"""What is private, and how much of it is spent."""

from typing import Literal

from pydantic import Field

from nmoe_flower.config.section import Section

__all__ = ["PrivacyConfig"]


class PrivacyConfig(Section):
    """Differential privacy of what leaves a client in stage 1.

    ``enabled`` covers FedSC's correlation matrices, ``weights`` the weights (FedSC and FedCE).
    Each has a budget of its own at ``delta``; together they cost the sum of both.
    """

    enabled: bool = Field(False, description="add noise to correlation matrices, within a budget")
    epsilon: float = Field(8.0, gt=0, description="of all matrices of a client together")
    delta: float = Field(1e-5, gt=0, lt=1, description="below 1 / images of a client")
    releases: int = Field(20, ge=1, description="matrices a client may send; sets the noise")
    adjacency: Literal["replace-one", "add-remove"] = Field(
        "replace-one", description="what neighbouring data sets differ in; see the docs"
    )
    secure: bool = Field(False, description="noise from the operating system; not reproducible")
    shrink: bool = Field(True, description="the server removes noise from the mean's spectrum")
    weights: bool = Field(False, description="train the extractor with DP-SGD (Opacus)")
    weights_epsilon: float = Field(8.0, gt=0, description="of the weights, beside epsilon")
    weights_clip: float = Field(1.0, gt=0, description="largest norm of a sample's gradient")
    weights_noise: float = Field(
        0.0, ge=0, description="over weights-clip; 0: the least with which all rounds are paid for"
    )

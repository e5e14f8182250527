"""Which images, and who holds what."""

from typing import Literal

from pydantic import Field

from nmoe_flower.config.section import Section

__all__ = ["DataConfig"]


class DataConfig(Section):
    """Which images, and who holds what."""

    dataset: str = Field("digits", description="digits, a hub name, or a local folder")
    cache_dir: str = Field("", description="decoded arrays; empty: ~/.cache/nmoe-flower")
    image_column: str = Field("", description="empty: found from the features")
    label_column: str = Field("", description="empty: found from the features")
    train_split: str = Field("train", description="name of the split clients train on")
    test_split: str = Field("test", description="of the test split; made from train if missing")
    num_clients: int = Field(10, ge=2, description="and experts: every client holds one")
    scheme: Literal["dominant", "iid", "dirichlet", "pathological"] = Field(
        "dominant", description="who holds what: one dominant class each, or as named"
    )
    tau: float = Field(0.3, gt=0, description="dominant share is 1 / (1 + tau)")
    alpha: float = Field(0.5, gt=0, description="concentration of the Dirichlet scheme")
    classes_per_client: int = Field(2, ge=1, description="for the pathological scheme")
    train_per_client: int = Field(0, ge=0, description="0: as many as balanced totals allow")
    test_per_client: int = Field(0, ge=0, description="0: as many as balanced totals allow")
    crop_padding: int = Field(1, ge=0, description="pixels; 0: no random crop")
    flip: bool = Field(False, description="random horizontal flip")
    cutout: int = Field(0, ge=0, description="side of the erased square in pixels; 0: none")

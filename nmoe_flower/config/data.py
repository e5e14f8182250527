"""Which images, and who holds what."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from nmoe_flower.catalogue import DOMAINS, SCHEMES, TESTS, VALIDATION
from nmoe_flower.config.section import (
    Distinct,
    Floats,
    Ints,
    Names,
    NamesOrOwn,
    Section,
    shown,
    split,
)

__all__ = ["DataConfig"]


Domains = Annotated[
    tuple[Annotated[str, NamesOrOwn(tuple(DOMAINS))], ...], BeforeValidator(split), Distinct
]
LARGEST_SIDE = 4096


class DataConfig(Section):
    """Which images, and who holds what."""

    dataset: str = Field(
        "digits", min_length=1, description="digits, a hub name, or a local folder"
    )
    cache_dir: str = Field("", description="decoded arrays; empty: ~/.cache/nmoe-flower")
    image_column: str = Field("", description="empty: found from the features")
    label_column: str = Field("", description="empty: found from the features")
    train_split: str = Field(
        "train", min_length=1, description="name of the split clients train on"
    )
    test_split: str = Field("test", description="of the test split; made from train if missing")
    kind: Literal["images", "features", "text"] = Field(
        "images", description="features: tables of numbers (csv, parquet, npz, npy); or text"
    )
    feature_columns: Names = Field(
        (), description="of a table; empty: all but label and partition column"
    )
    feature_means: Floats = Field(
        (), description="subtracted from the columns; empty: of the training samples"
    )
    feature_deviations: Floats = Field(
        (), description="what columns are divided by; empty: of the training samples"
    )
    size: str = Field(
        "", description="of images in pixels: 32, or 48x32 (width x height); empty: as they are"
    )
    fit: Literal["crop", "pad", "stretch"] = Field(
        "crop", description="to data.size: cut the centre, add borders, or stretch"
    )
    num_clients: int = Field(10, ge=2, description="and experts: every client holds one")
    without: Annotated[Ints, Distinct] = Field(
        (), description="shares of clients that have left: nobody's; the clients after move up"
    )
    scheme: Annotated[str, NamesOrOwn(tuple(SCHEMES))] = Field(
        "dominant", description="who holds what: one dominant class each, or as named"
    )
    partition_column: str = Field(
        "", description="for natural: whose a sample is; empty: the folder above the class says it"
    )
    domains: Domains = Field(
        (), description="for natural: client i sees its images in the i-th, as clean, rot90, blur"
    )
    renamings: int = Field(
        0, ge=0, description="for natural: client i calls the classes by permutation i mod this"
    )
    tau: float = Field(0.3, gt=0, description="dominant share is 1 / (1 + tau)")
    alpha: float = Field(0.5, gt=0, description="concentration of the Dirichlet scheme")
    classes_per_client: int = Field(2, ge=1, description="for the pathological scheme")
    train_per_client: int = Field(0, ge=0, description="0: as many as balanced totals allow")
    test_per_client: int = Field(0, ge=0, description="0: as many as balanced totals allow")
    validation_per_client: int = Field(
        0, ge=0, description="training images nobody trains on, to choose settings on; 0: none"
    )
    crop_padding: int = Field(1, ge=0, description="pixels; 0: no random crop")
    flip: bool = Field(False, description="random horizontal flip")
    cutout: int = Field(0, ge=0, description="side of the erased square in pixels; 0: none")

    @model_validator(mode="after")
    def _who_left_had_a_share(self) -> Self:
        if odd := [share for share in self.without if not 0 <= share < self.shares]:
            raise ValueError(
                f"without = {odd[0]} is no share; allowed: 0 to {self.shares - 1}, those of "
                f"{self.num_clients} clients (num-clients) and of {len(self.without)} that left"
            )
        return self

    @property
    def shares(self) -> int:
        """How many shares the data is dealt out in: those of the clients and of who has left."""
        return self.num_clients + len(self.without)

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, size: str) -> str:
        if not size:
            return size
        found = re.fullmatch(r"([0-9]{1,4})(?:x([0-9]{1,4}))?", size)
        if not found or not all(
            1 <= int(side) <= LARGEST_SIDE for side in found.groups() if side is not None
        ):
            raise ValueError(
                f"pixels as 32, or 48x32 (width x height), 1 to {LARGEST_SIDE} each, got {size!r}"
            )
        return size

    @model_validator(mode="after")
    def _tests_on_other_samples(self) -> Self:
        if self.test_split == self.train_split:
            raise ValueError(
                f"test-split = {self.test_split} is the split that clients train on (train-split); "
                "empty makes a test split of it"
            )
        return self

    @model_validator(mode="after")
    def _asks_whose_for_a_reason(self) -> Self:
        if self.partition_column and self.scheme != "natural" and self.kind == "images":
            raise ValueError(
                f"partition-column = {self.partition_column} says whose an image is, and scheme = "
                f"{self.scheme} does not look at it: use scheme = natural, or leave it empty"
            )
        return self

    @model_validator(mode="after")
    def _is_dealt_to_its_clients(self) -> Self:
        if not self.is_dealt:
            return self
        key = "domains" if self.domains else "renamings"
        value = ", ".join(self.domains) or self.renamings
        if self.scheme != "natural":
            raise ValueError(
                f"{key} = {value} makes an image some client's own, and scheme = {self.scheme} "
                "does not look at it: use scheme = natural, or leave it out"
            )
        if self.partition_column:
            raise ValueError(
                f"partition-column = {self.partition_column} says whose an image is, and so does "
                f"{key} = {value}: leave one of them out"
            )
        if self.kind == "text" or (self.domains and self.kind != "images"):
            raise ValueError(f"{key} = {value} is for images, got kind = {self.kind}")
        if self.domains and self.shares > len(self.domains):
            raise ValueError(
                f"num-clients = {self.num_clients} needs as many domains, got {len(self.domains)}: "
                f"{value}"
            )
        if self.renamings > self.shares:
            raise ValueError(
                f"renamings = {self.renamings} is more than there are clients; allowed: 0 to "
                f"{self.shares} (num-clients)"
            )
        return self

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        table = self.kind == "features"
        of_tables = {
            "feature-columns": self.feature_columns,
            "feature-means": self.feature_means,
            "feature-deviations": self.feature_deviations,
        }
        counts = [len(values) for values in of_tables.values()]
        for key, values in of_tables.items():
            if values and not table:
                told = ", ".join(map(str, values))
                raise ValueError(f"{key} = {shown(told)} needs kind = features")
        if any(counts[1:]) and len(set(counts)) > 1:
            raise ValueError(
                "feature-means and feature-deviations need as many numbers as feature-columns has "
                f"names, got {counts[0]} names, {counts[1]} means and {counts[2]} deviations"
            )
        if any(value <= 0 for value in self.feature_deviations):
            raise ValueError(
                f"feature-deviations must be above 0, got {min(self.feature_deviations)}"
            )
        odd = {"size": self.size, "flip": self.flip, "cutout": self.cutout}
        if table and any(odd.values()):
            key = next(key for key, value in odd.items() if value)
            raise ValueError(f"{key} = {odd[key]} is for images; kind = features has none")
        if table and self.dataset == "digits":
            raise ValueError(
                "kind = features needs a table or a folder of tables in dataset, got the images "
                "digits"
            )
        return self

    @property
    def is_dealt(self) -> bool:
        """Whether opening the data makes every image some client's."""
        return bool(self.domains or self.renamings)

    @model_validator(mode="after")
    def _text_has_no_pixels(self) -> Self:
        if self.kind != "text":
            return self
        if self.dataset == "digits":
            raise ValueError(
                "kind = text needs a folder of documents or a table with text in dataset, got the "
                "images digits"
            )
        for key, value in (("size", self.size), ("flip", self.flip), ("cutout", self.cutout)):
            if value:
                raise ValueError(f"{key} = {value} is for images; kind = text has none")
        return self

    @property
    def tests(self) -> tuple[str, ...]:
        """What every client is tested on: validation only if there are images for it.

        >>> DataConfig.model_validate({"validation-per-client": 50}).tests
        ('local', 'iid', 'validation')
        """
        return tuple(test for test in TESTS if test != VALIDATION or self.validation_per_client)

    @property
    def pixels(self) -> tuple[int, int] | None:
        """``size`` as (width, height); None: images stay as they are.

        >>> DataConfig.model_validate({"size": 32}).pixels
        (32, 32)
        """
        if not self.size:
            return None
        width, _, height = self.size.partition("x")
        return int(width), int(height or width)

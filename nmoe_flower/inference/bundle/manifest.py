"""What ``bundle.json`` says, checked."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nmoe_flower.config import Config, Scalar
from nmoe_flower.errors import BundleError, ConfigError
from nmoe_flower.files import read_json

__all__ = ["FORMAT", "Manifest", "read_manifest"]

FORMAT = 1

Count = Annotated[int, Field(ge=1)]
Version = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Manifest(BaseModel):
    """The content of ``bundle.json``.

    Attributes:
        format: Of the bundle.
        partition: Which expert of the federation this is; the gate calls it by this number.
        num_clients: E, the experts the gate knows.
        classes: The names of the C classes.
        latent_dim: D.
        image_shape: (channels, height, width) of an image.
        extractor_version: Of ``extractor.safetensors``.
        gate_version: Of ``gate.safetensors``.
        expert_version: Of ``expert.safetensors``.
        config: The run that made it, dotted keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal[1]
    partition: Annotated[int, Field(ge=0)]
    num_clients: Count
    classes: Annotated[list[str], Field(min_length=1)]
    latent_dim: Count
    image_shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    extractor_version: Version
    gate_version: Version
    expert_version: Version
    config: dict[str, Scalar]

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.partition >= self.num_clients:
            raise ValueError(f"partition {self.partition} of {self.num_clients} clients")
        return self

    @classmethod
    def parse(cls, path: Path, values: Any) -> tuple[Self, Config]:
        """Check the values of the file at ``path``, and the configuration in it.

        Raises:
            BundleError: A value is missing, unknown or not allowed; every one is named.
        """
        try:
            manifest = cls.model_validate(values)
            config = Config.parse({**manifest.config, "data.num-clients": manifest.num_clients})
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, one['loc'])) or 'bundle'}: {one['msg']}"
                for one in error.errors()
            )
            raise BundleError(f"{path}: {problems}") from None
        except ConfigError as error:
            raise BundleError(f"{path}: config: {error}") from None
        return manifest, config


def read_manifest(path: Path) -> tuple[Manifest, Config]:
    """Read ``bundle.json``.

    Raises:
        BundleError: It is missing, no JSON, or holds what it may not.
    """
    return Manifest.parse(path, read_json(path, what="the bundle", raises=BundleError))

"""The extractor that a configuration describes: one place for everyone who builds it."""

from collections.abc import Sequence

from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.models.extractor import Extractor, build_extractor

__all__ = ["configured_extractor"]

_KEYS = {"image": "backbone", "norm": "norm", "stem": "stem", "width": "widths", "widths": "widths"}
"""The key that an error of `build_extractor` is about, by the error's first word."""


def configured_extractor(config: Config, image_shape: Sequence[int]) -> Extractor:
    """Build ``extractor.*`` for images of ``image_shape`` (C, H, W), at fresh weights.

    Raises:
        ConfigError: An option is unknown, the images are too small, or a width has no 8 groups.
    """
    extractor = config.extractor
    try:
        return build_extractor(
            extractor.backbone,
            in_channels=image_shape[0],
            image_size=(image_shape[1], image_shape[2]),
            norm=extractor.norm,
            widths=extractor.widths or None,
            stem=extractor.stem or None,
            pool=extractor.pool,
        )
    except ConfigError as error:
        key = _KEYS.get(str(error).split()[0], "backbone")
        raise ConfigError(f"extractor.{key}: {error}") from None

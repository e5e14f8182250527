"""What leaves a device that asks its peers about text."""

from typing import Literal

from pydantic import Field

from nmoe_flower.config.section import Section

__all__ = ["QueryConfig"]


class QueryConfig(Section):
    """What leaves a device that asks its peers about text."""

    send: Literal["hidden", "tokens"] = Field(
        "hidden", description="hidden states at the cut, or tokens if asked: these are the text"
    )

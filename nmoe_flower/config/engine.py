"""How the clients of a simulation are run; it changes no result but for rounding."""

from pydantic import Field

from nmoe_flower.config.section import Section

__all__ = ["EngineConfig"]


class EngineConfig(Section):
    """How the clients of a simulation are run; it changes no result but for rounding."""

    stack: int = Field(
        0,
        ge=0,
        le=4096,
        description="clients that train at once in one process, where their networks have one "
        "shape (extra `stack`, no workers); 0: each by itself",
    )

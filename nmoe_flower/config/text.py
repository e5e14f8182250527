"""Text: what a document is, what makes tokens of it, and how it is cut into windows."""

from typing import Literal, Self

from pydantic import Field, model_validator

from nmoe_flower.config.section import Names, Section

__all__ = ["TextConfig"]


class TextConfig(Section):
    """Text: what a document is, what makes tokens of it, and how it is cut into windows."""

    tokenizer: str = Field(
        "", description="bytes, a tokenizer.json, a folder or a hub name; empty: the backbone's"
    )
    window: int = Field(128, ge=2, le=65536, description="tokens that are read at once, T")
    stride: int = Field(
        0, ge=0, description="tokens between the begins of windows; 0: window, so none overlap"
    )
    packing: Literal["stream", "document"] = Field(
        "stream", description="documents follow each other, or one to a window, filled up"
    )
    prefix: int = Field(
        32, ge=1, description="first tokens of a window, which gates see and nobody scores"
    )
    chunk: int = Field(
        16, ge=1, le=65536, description="tokens after which gates named -chunks decide again"
    )
    recent: int = Field(
        32, ge=0, le=65536, description="latest tokens that these decide from; 0: all so far"
    )
    candidates: int = Field(
        0, ge=0, description="experts that likelihood and posterior ask, unigram's best; 0: all"
    )
    unit: Literal["files", "lines", "paragraphs"] = Field(
        "files", description="what of a file is a document, which is never split"
    )
    column: str = Field("", description="of the text in a table; empty: found")
    domains: Names = Field((), description="folders of the text to take; empty: all")
    test_share: float = Field(
        0.1, gt=0, lt=1, description="of a domain's text, to test on, where there is no test part"
    )
    too_long: Literal["truncate", "refuse"] = Field(
        "truncate",
        description="a labelled document of more tokens than window: cut to these, or an error",
    )
    near_duplicates: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a document that is in the test part and leaves it out; 0: all of it",
    )
    mixed: float = Field(
        0.0, ge=0, lt=1, description="share of a client's text that comes from all others alike"
    )

    @model_validator(mode="after")
    def _something_is_scored(self) -> Self:
        if self.prefix >= self.window:
            raise ValueError(
                f"prefix = {self.prefix} leaves nothing of window = {self.window} to score; "
                f"allowed: 1 to {self.window - 1}"
            )
        if self.stride > self.window:
            raise ValueError(
                f"stride = {self.stride} leaves text between windows of {self.window} out; "
                f"allowed: 0 to {self.window}"
            )
        return self

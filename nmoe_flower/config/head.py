"""Between stages 1 and 2: a head on features that were learned without labels."""

from pydantic import Field

from nmoe_flower.config.section import Section

__all__ = ["HeadConfig"]


class HeadConfig(Section):
    """A head on the frozen extractor, by federated averaging: where experts may start from."""

    rounds: int = Field(
        0, ge=0, description="one step per client each; 0: no head but that of FedCE"
    )
    batch_size: int = Field(32, ge=1, description="latents per client and round")
    learning_rate: float = Field(4e-3, gt=0, description="AdamW's at the server, falls to 0")
    weight_decay: float = Field(0.5, ge=0, description="AdamW's at the server")

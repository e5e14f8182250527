"""Frozen configuration, one model per component.

Keys are kebab-case. A recipe is a TOML file with one table per component; ``--set`` and Flower's
run config use the dotted form (``gate.top-k=2``). Flower's run config has no lists, so a list also
reads from comma-separated text (``"random,federated"``). Unknown keys are refused.
"""

from nmoe_flower.config.adapter import AdapterConfig
from nmoe_flower.config.alignment import AlignmentConfig
from nmoe_flower.config.data import DataConfig
from nmoe_flower.config.expert import ExpertConfig
from nmoe_flower.config.extractor import ExtractorConfig
from nmoe_flower.config.fedsc import FedSCConfig
from nmoe_flower.config.gate import GateConfig
from nmoe_flower.config.head import HeadConfig
from nmoe_flower.config.privacy import PrivacyConfig
from nmoe_flower.config.run import RunConfig
from nmoe_flower.config.section import OF_A_FILE, Names, NamesOrOwn, Section, kebab, shown
from nmoe_flower.config.text import TextConfig
from nmoe_flower.config.whole import Config, Override, Scalar, explain

__all__ = [
    "OF_A_FILE",
    "AdapterConfig",
    "AlignmentConfig",
    "Config",
    "DataConfig",
    "ExpertConfig",
    "ExtractorConfig",
    "FedSCConfig",
    "GateConfig",
    "HeadConfig",
    "Names",
    "NamesOrOwn",
    "Override",
    "PrivacyConfig",
    "RunConfig",
    "Scalar",
    "Section",
    "TextConfig",
    "explain",
    "kebab",
    "shown",
]

"""The parts of a networked mixture: extractor, experts, gates, the mixture, prior correction."""

from nmoe_flower.models.alignment import AlignmentMixture, alignment_loss, mixed
from nmoe_flower.models.blocks import StandardisedConv2d
from nmoe_flower.models.build import (
    Backbone,
    check_backbone,
    check_gate,
    configured_extractor,
    configured_gate,
    own_gate,
)
from nmoe_flower.models.expert import Classifier, Expert
from nmoe_flower.models.extractor import Extractor, build_extractor
from nmoe_flower.models.filters import FilterBank
from nmoe_flower.models.gate import (
    Gate,
    GateSite,
    LocalGate,
    OracleGate,
    PrototypeGate,
    RandomGate,
    Router,
    Routing,
    check_top_k,
    route_top_k,
)
from nmoe_flower.models.nmoe import (
    CachedExperts,
    CentralizedMoE,
    ExpertPool,
    LocalExperts,
    Mixture,
    NMoE,
    Prediction,
    combine,
)
from nmoe_flower.models.prior import PriorChoice, choose_prior, correct, em_prior
from nmoe_flower.models.projector import Contrastive, Projector

__all__ = [
    "AlignmentMixture",
    "Backbone",
    "CachedExperts",
    "CentralizedMoE",
    "Classifier",
    "Contrastive",
    "Expert",
    "ExpertPool",
    "Extractor",
    "FilterBank",
    "Gate",
    "GateSite",
    "LocalExperts",
    "LocalGate",
    "Mixture",
    "NMoE",
    "OracleGate",
    "Prediction",
    "PriorChoice",
    "Projector",
    "PrototypeGate",
    "RandomGate",
    "Router",
    "Routing",
    "StandardisedConv2d",
    "alignment_loss",
    "build_extractor",
    "check_backbone",
    "check_gate",
    "check_top_k",
    "choose_prior",
    "combine",
    "configured_extractor",
    "configured_gate",
    "correct",
    "em_prior",
    "mixed",
    "own_gate",
    "route_top_k",
]

"""The parts of a networked mixture: extractor, experts, gates, the mixture, prior correction."""

from nmoe_flower.models.classifier import Classifier
from nmoe_flower.models.configured import (
    Backbone,
    check_backbone,
    check_gate,
    configured_extractor,
    own_gate,
)
from nmoe_flower.models.expert import Expert
from nmoe_flower.models.extractor import Extractor, build_extractor
from nmoe_flower.models.gate import Gate
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
from nmoe_flower.models.routing import Router, Routing, route_top_k
from nmoe_flower.models.untrained import LocalGate, PrototypeGate, RandomGate

__all__ = [
    "Backbone",
    "CachedExperts",
    "CentralizedMoE",
    "Classifier",
    "Contrastive",
    "Expert",
    "ExpertPool",
    "Extractor",
    "Gate",
    "LocalExperts",
    "LocalGate",
    "Mixture",
    "NMoE",
    "Prediction",
    "PriorChoice",
    "Projector",
    "PrototypeGate",
    "RandomGate",
    "Router",
    "Routing",
    "build_extractor",
    "check_backbone",
    "check_gate",
    "choose_prior",
    "combine",
    "configured_extractor",
    "correct",
    "em_prior",
    "own_gate",
    "route_top_k",
]

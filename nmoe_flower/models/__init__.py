"""The parts of a networked mixture: extractor, experts, gates, the mixture, prior correction."""

from nmoe_flower.models.adapted import AdaptedExtractor
from nmoe_flower.models.adapter import AdaptedLM, blocks_of
from nmoe_flower.models.alignment import AlignmentMixture, alignment_loss, mixed
from nmoe_flower.models.blocks import GroupNorm, StandardisedConv2d, TiledConv2d
from nmoe_flower.models.build import (
    Backbone,
    TrainedGate,
    check_backbone,
    check_gate,
    configured_extractor,
    configured_gate,
    embedding_dim,
    finished_extractor,
    own_gate,
    trained_gate,
)
from nmoe_flower.models.client_weights import ClientWeightsGate, mixture_weights
from nmoe_flower.models.copying import copy_of
from nmoe_flower.models.expert import Classifier, Expert
from nmoe_flower.models.extractor import Extractor, build_extractor
from nmoe_flower.models.filters import FilterBank
from nmoe_flower.models.gate import (
    DiscriminantGate,
    DomainGate,
    Gate,
    GateSite,
    HomeBias,
    LocalGate,
    OracleGate,
    PrototypeGate,
    RandomGate,
    Router,
    Routing,
    ScoringRouter,
    check_top_k,
    normal_mean,
    normalised_latents,
    route_known,
    route_top_k,
    with_home_bias,
)
from nmoe_flower.models.given import Given, PretrainedExtractor, Wish
from nmoe_flower.models.language import LanguageWish, OpenLM, open_language_model
from nmoe_flower.models.low_rank import require_peft
from nmoe_flower.models.metric_gate import MetricGate, MetricLearner, metric_scores
from nmoe_flower.models.nmoe import (
    AskedExperts,
    CachedExperts,
    CentralizedMoE,
    ExpertPool,
    LocalExperts,
    Mixture,
    NMoE,
    Prediction,
    combine,
)
from nmoe_flower.models.past import Past
from nmoe_flower.models.prior import PriorChoice, choose_prior, correct, em_prior
from nmoe_flower.models.projector import Contrastive, Projector
from nmoe_flower.models.small_lm import SmallLM, SmallSizes
from nmoe_flower.models.split_lm import SplitLM, split_lm
from nmoe_flower.models.standard import Standard, add_standard, standardised
from nmoe_flower.models.text_chunks import Chunks, at_home, best_of, token_scores
from nmoe_flower.models.text_gate import (
    UNSEEN,
    posterior_routes,
    state_scores,
    text_routes,
    token_frequencies,
    unigram_scores,
)

__all__ = [
    "UNSEEN",
    "AdaptedExtractor",
    "AdaptedLM",
    "AlignmentMixture",
    "AskedExperts",
    "Backbone",
    "CachedExperts",
    "CentralizedMoE",
    "Chunks",
    "Classifier",
    "ClientWeightsGate",
    "Contrastive",
    "DiscriminantGate",
    "DomainGate",
    "Expert",
    "ExpertPool",
    "Extractor",
    "FilterBank",
    "Gate",
    "GateSite",
    "Given",
    "GroupNorm",
    "HomeBias",
    "LanguageWish",
    "LocalExperts",
    "LocalGate",
    "MetricGate",
    "MetricLearner",
    "Mixture",
    "NMoE",
    "OpenLM",
    "OracleGate",
    "Past",
    "Prediction",
    "PretrainedExtractor",
    "PriorChoice",
    "Projector",
    "PrototypeGate",
    "RandomGate",
    "Router",
    "Routing",
    "ScoringRouter",
    "SmallLM",
    "SmallSizes",
    "SplitLM",
    "Standard",
    "StandardisedConv2d",
    "TiledConv2d",
    "TrainedGate",
    "Wish",
    "add_standard",
    "alignment_loss",
    "at_home",
    "best_of",
    "blocks_of",
    "build_extractor",
    "check_backbone",
    "check_gate",
    "check_top_k",
    "choose_prior",
    "combine",
    "configured_extractor",
    "configured_gate",
    "copy_of",
    "correct",
    "em_prior",
    "embedding_dim",
    "finished_extractor",
    "metric_scores",
    "mixed",
    "mixture_weights",
    "normal_mean",
    "normalised_latents",
    "open_language_model",
    "own_gate",
    "posterior_routes",
    "require_peft",
    "route_known",
    "route_top_k",
    "split_lm",
    "standardised",
    "state_scores",
    "text_routes",
    "token_frequencies",
    "token_scores",
    "trained_gate",
    "unigram_scores",
    "with_home_bias",
]

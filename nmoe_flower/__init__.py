"""Federated learning of Networked Mixture-of-Experts on Flower.

``import nmoe_flower as nmoe`` has the names that most programs need; each is loaded when it is
first used, so that the import itself takes no time::

    import nmoe_flower as nmoe

    result = nmoe.run("cifar10-quick", seed=1, set={"gate.rounds": 20})

The parts have more: ``nmoe_flower.strategies``, ``nmoe_flower.models``, ``nmoe_flower.losses``, ...
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmoe_flower.alignment import align
    from nmoe_flower.clients import Contrast, PrivateMatrix, answer_assigned
    from nmoe_flower.config import Config
    from nmoe_flower.data import DominantClassPartitioner
    from nmoe_flower.engine import InProcessGrid, StreamingGrid
    from nmoe_flower.errors import NMoEError
    from nmoe_flower.inference import (
        Bundle,
        Client,
        ExpertServer,
        PeerList,
        RemoteExperts,
        export_run,
    )
    from nmoe_flower.models import Expert, Gate, LocalExperts, NMoE, build_extractor
    from nmoe_flower.privacy import (
        GaussianMechanism,
        epsilon_spent,
        noise_multiplier_for,
        sensitivity,
    )
    from nmoe_flower.running import RunResult, run
    from nmoe_flower.strategies import (
        AdamW,
        ExpertAlignment,
        FedCE,
        FedGate,
        FedSC,
        RollGate,
        StreamingFedAvg,
        StreamingOptions,
    )
    from nmoe_flower.trained import load_mixture

__all__ = [
    "AdamW",
    "Bundle",
    "Client",
    "Config",
    "Contrast",
    "DominantClassPartitioner",
    "Expert",
    "ExpertAlignment",
    "ExpertServer",
    "FedCE",
    "FedGate",
    "FedSC",
    "Gate",
    "GaussianMechanism",
    "InProcessGrid",
    "LocalExperts",
    "NMoE",
    "NMoEError",
    "PeerList",
    "PrivateMatrix",
    "RemoteExperts",
    "RollGate",
    "RunResult",
    "StreamingFedAvg",
    "StreamingGrid",
    "StreamingOptions",
    "align",
    "answer_assigned",
    "build_extractor",
    "epsilon_spent",
    "export_run",
    "load_mixture",
    "noise_multiplier_for",
    "run",
    "sensitivity",
]

__version__ = "0.1.0"

# Where each name is, as the imports above say it to type checkers and editors.
_HOMES = {
    "nmoe_flower.alignment": ("align",),
    "nmoe_flower.clients": ("Contrast", "PrivateMatrix", "answer_assigned"),
    "nmoe_flower.config": ("Config",),
    "nmoe_flower.data": ("DominantClassPartitioner",),
    "nmoe_flower.engine": ("InProcessGrid", "StreamingGrid"),
    "nmoe_flower.errors": ("NMoEError",),
    "nmoe_flower.inference": (
        "Bundle", "Client", "ExpertServer", "PeerList", "RemoteExperts", "export_run",
    ),
    "nmoe_flower.models": ("Expert", "Gate", "LocalExperts", "NMoE", "build_extractor"),
    "nmoe_flower.privacy": (
        "GaussianMechanism", "epsilon_spent", "noise_multiplier_for", "sensitivity",
    ),
    "nmoe_flower.running": ("RunResult", "run"),
    "nmoe_flower.strategies": (
        "AdamW", "ExpertAlignment", "FedCE", "FedGate", "FedSC", "RollGate", "StreamingFedAvg",
        "StreamingOptions",
    ),
    "nmoe_flower.trained": ("load_mixture",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    from nmoe_flower.on_demand import first_used

    return first_used(__name__, name, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

import importlib
import pkgutil

import pytest

import nmoe_flower

PACKAGES = [
    info.name
    for info in pkgutil.walk_packages(nmoe_flower.__path__, "nmoe_flower.")
    if not info.name.endswith("__main__")
]
# What the design promises to other code; add freely, never take away.
PROMISED = {
    "nmoe_flower.alignment": {
        "Assigner", "Capacity", "Fitness", "Usage", "align", "desirability",
    },
    "nmoe_flower.losses": {
        "correlation", "load_balance", "local_spectral", "spectral_contrastive",
    },
    "nmoe_flower.privacy": {
        "GaussianMechanism", "epsilon_spent", "noise_multiplier_for", "sensitivity", "smat", "svec",
    },
    "nmoe_flower.data": {"DominantClassPartitioner", "dominant_share_from_tau"},
    "nmoe_flower.models": {"Expert", "Gate", "LocalExperts", "NMoE", "build_extractor"},
    "nmoe_flower.strategies": {
        "AdamW", "ExpertAlignment", "FedCE", "FedGate", "FedSC", "RollGate", "StreamingFedAvg",
        "StreamingOptions",
    },
    "nmoe_flower.clients": {
        "Contrast", "Memory", "PrivateMatrix", "StateMemory", "Trained", "answer_assigned",
    },
    "nmoe_flower.engine": {"InProcessGrid", "StreamingGrid"},
    "nmoe_flower.metrics": {
        "accuracy", "auc", "balanced_accuracy", "local_ratio", "macro_f1", "routing_matrix",
    },
}  # fmt: skip


def is_package(name: str) -> bool:
    return hasattr(importlib.import_module(name), "__path__")


@pytest.mark.parametrize("name", PACKAGES)
def test_lists_of_public_names_are_sorted_and_true(name: str) -> None:
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    # As ruff sorts them: constants, classes, then the rest.
    kinds = [(0 if n.isupper() else 1 if n[0].isupper() else 2, n) for n in public]
    assert kinds == sorted(kinds)
    assert len(set(public)) == len(public)
    for exported in public:
        assert getattr(module, exported) is not None, exported
        assert not exported.startswith("_")


@pytest.mark.parametrize("name", [name for name in PACKAGES if is_package(name)])
def test_packages_export_all_they_import(name: str) -> None:
    """A class or function taken in from a sub-module is there to be used: it must be listed."""
    module = importlib.import_module(name)
    public = set(getattr(module, "__all__", []))
    taken = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and str(getattr(value, "__module__", "")).startswith(f"{name}.")
    }
    assert taken <= public


@pytest.mark.parametrize(("name", "promised"), PROMISED.items())
def test_promised_names_are_there(name: str, promised: set[str]) -> None:
    assert promised <= set(importlib.import_module(name).__all__)

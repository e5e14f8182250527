"""A run says which of its settings nobody reads, and of no others."""

from typing import Any

import pytest

from nmoe_flower.catalogue import BASELINES
from nmoe_flower.config import Config
from nmoe_flower.config.unread import _TABLE, _without_readers, unread
from nmoe_flower.deploy.folder import for_deployment
from nmoe_flower.recipes import Recipe, packaged_recipes, packaged_studies
from nmoe_flower.study.file import Study

TEXT = {
    "data.kind": "text", "data.dataset": "./texts", "data.scheme": "iid",
    "extractor.method": "pretrained", "extractor.backbone": "small-lm",
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"alignment.rounds": 3, "adapter.rank": 4},
            [
                "alignment.rounds = 3: for run.system = aligned, and run.system = networked reads "
                "none of alignment.*",
                "adapter.rank = 4: for run.system = language, and run.system = networked reads "
                "none of adapter.*",
            ],
        ),
        (
            {"run.system": "aligned", "gate.rounds": 5, "gate.hidden": 8, "gate.keep": 0.5},
            [
                "gate.rounds = 5, gate.keep = 0.5: for run.system = networked and language, and "
                "run.system = aligned reads none of gate.*"
            ],
        ),
        (
            {"run.system": "fedavg", "gate.hidden": 8},
            ["gate.hidden = 8 is read by run.system = networked and aligned, and not by "
             "run.system = fedavg"],
        ),
        (
            {"gate.methods": "local,federated", "gate.keep": 0.5, "gate.cycles": 3},
            ["gate.keep = 0.5, gate.cycles = 3 are read by the gate rolling of run.system = "
             "networked, and not by run.system = networked and gate.methods = local,federated"],
        ),
        (
            {"data.scheme": "pathological", "data.alpha": 0.1, "data.tau": 0.2},
            [
                "data.tau = 0.2 is read by data.scheme = dominant, and not by data.scheme = "
                "pathological",
                "data.alpha = 0.1 is read by data.scheme = dirichlet, and not by data.scheme = "
                "pathological",
            ],
        ),
        ({"data.scheme": "my_pkg:Scheme", "data.alpha": 0.1}, []),
        (
            {"contrast.dim": 8, "contrast.weight": 3.0},
            ["contrast.weight = 3.0, contrast.dim = 8: for extractor.method = fedsc, where there "
             "is a stage 1, and run.system = networked and extractor.method = fedce reads none of "
             "contrast.*"],
        ),
        ({"extractor.method": "fedsc", "contrast.dim": 8}, []),
        (
            {"privacy.epsilon": 2.0, "privacy.weights-clip": 2.0},
            [
                "privacy.epsilon = 2.0 is read by privacy.enabled and privacy.tokens, and not by "
                "privacy.enabled = false and privacy.tokens = false",
                "privacy.weights-clip = 2.0 is read by privacy.weights, and not by "
                "privacy.weights = false",
            ],
        ),
        (
            {"text.window": 64, "text.prefix": 8},
            [
                "text.window = 64 is read by data.kind = text, and not by data.kind = images",
                "text.prefix = 8: for run.system = language, and run.system = networked reads "
                "none of text.*",
            ],
        ),
        (TEXT | {"text.window": 64, "text.too-long": "refuse"}, []),
        (
            TEXT | {"run.system": "language", "text.window": 64, "text.prefix": 8,
                    "text.too-long": "refuse", "adapter.rank": 4},
            ["text.too-long = refuse is read by text that is classified (data.kind = text, and "
             "another system than language), and not by data.kind = text and run.system = "
             "language"],
        ),
        (
            TEXT | {"run.system": "language", "extractor.rounds": 5, "extractor.widths": "8,8,8",
                    "head.batch-size": 4, "expert.hidden": "8", "expert.epochs": 3,
                    "expert.sharing": "none", "gate.methods": "local", "run.controls": "",
                    "run.control-epochs": 2},
            [
                "extractor.rounds = 5 is read by other systems than language, and not by "
                "run.system = language",
                "head.batch-size = 4: for run.system = networked, and run.system = language reads "
                "none of head.*",
                "expert.epochs = 3 is read by run.system = networked, and not by run.system = "
                "language",
                "expert.hidden = 8 is read by other systems than language, and not by run.system "
                "= language",
                "run.controls =, run.control-epochs = 2 are read by run.system = networked "
                "(language has adapter.controls), and not by run.system = language",
            ],
        ),
        (
            {"run.system": "fedavg", "extractor.rounds": 3, "head.batch-size": 4,
             "expert.hidden": "8", "expert.learning-rate": 0.1, "run.controls": ""},
            [
                "head.batch-size = 4: for run.system = networked, and run.system = fedavg reads "
                "none of head.*",
                "expert.learning-rate = 0.1 is read by run.system = networked, and not by "
                "run.system = fedavg",
            ],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_nobody_reads_are_told(values: dict[str, Any], told: list[str]) -> None:
    assert list(unread(Config.parse(values))) == told
    assert set(told) <= set(Config.parse(values).advice())


@pytest.mark.parametrize("system", ["networked", "aligned", "fedem", "language"])
def test_nothing_is_told_of_what_deploying_changes(system: str) -> None:
    of_text = TEXT | {"gate.methods": "unigram"} if system == "language" else {}
    config = Config.parse(of_text | {"run.system": system})
    assert list(unread(for_deployment(config, 3))) == []


def test_a_default_is_never_told() -> None:
    for system in ("networked", "aligned", *BASELINES):
        given = {"extractor.method": "pretrained", "extractor.backbone": "efficientnet-lite0"}
        needs = given if system in BASELINES and BASELINES[system].needs_given else {}
        assert list(unread(Config.parse({"run.system": system, **needs}))) == []


def test_every_key_in_a_note_is_one() -> None:
    known = Config().flat()
    for row in _TABLE:
        for key in (*row.keys, *row.by, *row.others):
            section = key.removesuffix("*")
            assert key in known or (section != key and any(k.startswith(section) for k in known))


@pytest.mark.parametrize("recipe", packaged_recipes(), ids=lambda one: one.name)
def test_no_recipe_sets_what_nobody_reads(recipe: Recipe) -> None:
    assert list(unread(Config.load(recipe.path))) == []


@pytest.mark.parametrize("found", packaged_studies(), ids=lambda one: one.name)
def test_what_a_study_sets_is_read_by_some_run_of_it(found: Recipe) -> None:
    """Its runs share settings, and some of them read no more than others."""
    runs = [run.config for run in Study.load(found.path).runs]
    told = [{key for _, keys in _without_readers(config) for key in keys} for config in runs]
    assert set.intersection(*told) == set()

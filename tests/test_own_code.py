"""``package.module:Name`` in a configuration: found, checked before anything is written, used."""

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from nmoe_flower import cli
from nmoe_flower import running as run_module
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.own_code import is_own, load_own

FEW = [
    "data.num-clients=4", "data.train-per-client=60", "data.test-per-client=10",
    "extractor.rounds=2", "extractor.batch-size=8", "expert.hidden=8", "expert.epochs=1",
    "gate.methods=local", "gate.rounds=1", "gate.local-steps=1", "run.controls=",
]  # fmt: skip
CODE = '''
import numpy as np
import torch
from torch import nn

from nmoe_flower.models import Routing


class Pooled(nn.Module):
    """Means of a 2 x 2 grid, and one layer."""

    def __init__(self, *, in_channels, image_size):
        super().__init__()
        self.latent_dim = 8
        self.layer = nn.Linear(4 * in_channels, 8)

    def forward(self, images):
        return self.layer(nn.functional.adaptive_avg_pool2d(images, 2).flatten(1))


class NextGate:
    """Every latent to the next device in the ring."""

    def __init__(self, *, own_id, num_experts, latent_dim, top_k):
        self.next_id = (own_id + 1) % num_experts

    def route(self, latents, *, generator=None):
        ids = torch.full((len(latents), 1), self.next_id)
        return Routing(ids, latents.new_ones(ids.shape))


def squared(scores, expert_logits, labels):
    mixed = (scores.softmax(1)[:, :, None] * expert_logits.softmax(2)).sum(1)
    return (1 - mixed.gather(1, labels[:, None])).square().mean()


def striped(labels, num_clients, rng):
    return [np.arange(client, len(labels), num_clients) for client in range(num_clients)]


class Lazy(Pooled):
    def __init__(self, **options):
        super().__init__(**options)
        self.layer = nn.LazyLinear(8)


class Double(Pooled):
    def forward(self, images):
        return super().forward(images).double()


class Longer(Pooled):
    def forward(self, images):
        return super().forward(images)[:, :5]


class Raises(Pooled):
    def forward(self, images):
        raise RuntimeError("kernel too large")


class NoWidth(nn.Module):
    def __init__(self, *, in_channels, image_size):
        super().__init__()


class Picky(nn.Module):
    def __init__(self, channels):
        super().__init__()


class Outside(NextGate):
    def route(self, latents, *, generator=None):
        return Routing(torch.full((len(latents), 1), 99), latents.new_ones(len(latents), 1))


class Twice(NextGate):
    def route(self, latents, *, generator=None):
        ids = torch.full((len(latents), 2), self.next_id)
        return Routing(ids, latents.new_full(ids.shape, 0.5))


class Unsure(NextGate):
    def route(self, latents, *, generator=None):
        ids, weights = super().route(latents)
        return Routing(ids, weights * torch.nan)


class Overdone(NextGate):
    def route(self, latents, *, generator=None):
        ids, weights = super().route(latents)
        return Routing(ids, 2 * weights)


class Bare(NextGate):
    def route(self, latents, *, generator=None):
        return torch.zeros(len(latents))


class NoRoute:
    def __init__(self, **options):
        pass


def no_gradient(scores, expert_logits, labels):
    return expert_logits.mean()


def a_vector(scores, expert_logits, labels):
    return scores


def overlapping(labels, num_clients, rng):
    return [np.arange(5)] * num_clients


def too_few(labels, num_clients, rng):
    return [np.arange(5)]


def beyond(labels, num_clients, rng):
    return [np.array([len(labels) + client]) for client in range(num_clients)]


NUMBER = 3
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a package of one's own; forgotten afterwards."""
    (tmp_path / "my_pkg").mkdir()
    (tmp_path / "my_pkg" / "__init__.py").write_text("")
    (tmp_path / "my_pkg" / "code.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "my_pkg" / "broken.py").write_text("raise ValueError('not today')\n")
    (tmp_path / "my_pkg" / "needy.py").write_text("import no_such_thing_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setenv("NMOE_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_pkg"]:
        del sys.modules[name]


def run(*overrides: str, workers: int = 0) -> int:
    return cli.main(["run", "--no-figures", "--workers", str(workers), "--set", *FEW, *overrides])


def rows(here: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((here / "runs/nmoe/results.json").read_text())[
        "rows"
    ]
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_all_four_kinds_are_used_together(here: Path, workers: int) -> None:
    code = run(
        "extractor.backbone=my_pkg.code:Pooled",
        "gate.methods=local,federated,my_pkg.code:NextGate",
        "gate.objective=my_pkg.code:squared",
        "data.scheme=my_pkg.code:striped",
        workers=workers,
    )
    assert code == 0
    gates = {row["gate"] for row in rows(here)}
    assert {"local", "federated", "my_pkg.code:NextGate", "my_pkg.code:NextGate+prior"} <= gates
    routing = json.loads((here / "runs/nmoe/results.json").read_text())["routing"]
    ring = [[float(asked == (asking + 1) % 4) for asked in range(4)] for asking in range(4)]
    assert routing["my_pkg.code:NextGate/local"] == ring
    partition = json.loads((here / "runs/nmoe/results.json").read_text())["partition"]
    assert [sum(counts) for counts in partition["train"]] == [60] * 4


def test_a_partitioner_of_flwr_datasets_is_taken_by_name(here: Path) -> None:
    scheme = "data.scheme=flwr_datasets.partitioner:LinearPartitioner"
    assert cli.main(["partition", "--set", scheme, "data.num-clients=4"]) == 0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("extractor.backbone=my_pkg.gone:Net", "there is no module 'my_pkg.gone'; it must be"),
        ("extractor.backbone=no_such_pkg:Net", "there is no module 'no_such_pkg'"),
        ("extractor.backbone=my_pkg.code:Net", "my_pkg/code.py has no 'Net'"),
        ("extractor.backbone=my_pkg.code:Poled", "no 'Poled'; did you mean Pooled?"),
        ("extractor.backbone=my_pkg.broken:Net", "failed: ValueError: not today"),
        ("extractor.backbone=my_pkg.needy:Net", "needs no_such_thing_at_all, which is missing"),
        ("extractor.backbone=my_pkg.code:squared", "no subclass of torch.nn.Module"),
        ("extractor.backbone=my_pkg.code:NUMBER", "code.py is int; allowed: a class or a function"),
        ("extractor.backbone=my_pkg.code:Lazy", "layer.weight has no size before its first im"),
        ("extractor.backbone=my_pkg.code:Picky", "image_size=(8, 8)) raised TypeError"),
        ("extractor.backbone=my_pkg.code:NoWidth", "latent_dim is None"),
        ("extractor.backbone=my_pkg.code:Double", "finite float32, got torch.float64"),
        ("extractor.backbone=my_pkg.code:Longer", "(2, 1, 8, 8) give (2, 5), not (2, 8)"),
        ("extractor.backbone=my_pkg.code:Raises", "RuntimeError: kernel too large"),
        ("gate.methods=my_pkg.code:Outside", "expert_ids must be int64 from 0 to 3"),
        ("gate.methods=my_pkg.code:Twice", "expert_ids of a row must differ, got [1, 1]"),
        ("gate.methods=my_pkg.code:Unsure", "must be 0 or more and sum to 1, got [nan]"),
        ("gate.methods=my_pkg.code:Overdone", "must be 0 or more and sum to 1, got [2.0]"),
        ("gate.methods=my_pkg.code:Bare", "route gave Tensor, not a Routing"),
        ("gate.methods=my_pkg.code:NoRoute", "has no method route"),
        ("gate.methods=my_pkg.code:NUMBER", "code.py is int; allowed: a class or a function"),
        ("gate.objective=my_pkg.code:no_gradient", "no finite gradient"),
        ("gate.objective=my_pkg.code:a_vector", "must give a finite scalar"),
        ("gate.objective=my_pkg.code:NUMBER", "code.py is int; allowed: a class or a function"),
        ("data.scheme=my_pkg.code:overlapping", "a sample is in two shares"),
        ("data.scheme=my_pkg.code:too_few", "1 shares; allowed: 4"),
        ("data.scheme=my_pkg.code:beyond", "the share of client 0 is not a list of"),
        ("data.scheme=my_pkg.code:Pooled", "is no flwr_datasets.partitioner.Partitioner"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    here: Path,
    setting: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "_train", None)
    assert run(setting) == 1
    told = capsys.readouterr().err
    key, _, value = setting.partition("=")
    assert said in told
    assert f"{key} = {value}" in told
    assert "Traceback" not in told
    assert not (here / "runs").exists()


@pytest.mark.parametrize("option", ["widths=8,8", "stem=cifar", "norm=batch", "pool=multi"])
def test_options_of_other_backbones_are_not_ignored_in_silence(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option.split('=')[0]} = .* leave it out"):
        Config.load(None, ["extractor.backbone=my_pkg.code:Pooled", f"extractor.{option}"])


@pytest.mark.parametrize(
    "text", ["", "a", ":b", "a:", "a.:b", "a:b.c", "a b:c", "1a:b", "a/b:c", "a::b"]
)
def test_what_names_no_code_is_no_choice(text: str) -> None:
    assert not is_own(text)
    with pytest.raises(ConfigError, match=r"package\.module:Name, got"):
        Config.parse({"gate.objective": text})


def test_nothing_installed_is_hidden_by_the_working_folder(here: Path) -> None:
    (here / "json.py").write_text("dumps = 'mine'\n")
    assert load_own("gate.objective", "json:dumps") is json.dumps

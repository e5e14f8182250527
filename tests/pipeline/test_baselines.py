"""Published systems from data to results: what they must equal, what must stay at home."""

import functools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message

from nmoe_flower import records
from nmoe_flower.baselines import of_client, system_cost
from nmoe_flower.baselines.member import ExpertNetwork, Member
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.client_app import app
from nmoe_flower.clients.device import Device, Store, device_of
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ConfigError, NMoEError
from nmoe_flower.models import configured_extractor
from nmoe_flower.pipeline.exchanges import exchanges
from nmoe_flower.records import Action, BaselineKey, FeedbackKey
from nmoe_flower.strategies import Partitions
from nmoe_flower.study import gates_of, numbers_of
from tests.forks import Nmoe

ROOT = Path(__file__).parents[2]
New = Callable[..., Any]
SMALL = {
    "data.num-clients": 2,
    "data.train-per-client": 40,
    "run.checkpoint-every": 1,
    "data.scheme": "pathological",
    "data.classes-per-client": 3,
    "extractor.backbone": "mlp",
    "extractor.widths": "16",
    "baseline.rounds": 3,
    "baseline.local-steps": 2,
    "baseline.batch-size": 16,
    "baseline.tuning-steps": 5,
    "baseline.evaluate-every": 2,
    "baseline.anchors": False,
}
GIVEN = {
    "extractor.method": "pretrained",
    "extractor.backbone": "tests.given_backbone:Tiny",
    "extractor.cut": "low:2, high:1",
    "extractor.widths": "",
    "expert.init": "scratch",
}
TRAVELS = {
    "pfedmoap": {"expert", "peer"},
    "fedper": {"trunk"},
    "fedrep": {"trunk"},
    "pfedmoe": {"trunk"},
    "fedmoe": {"trunk", "expert", "gate"},
    "fedjets": {"trunk", "expert", "gate"},
    "fedmoe-da": {"trunk", "expert", "gate"},
}  # of all others trunk and expert
HEADER = 128  # bytes, of an array of few dimensions in NumPy's format


class Overheard:
    """The real app; keeps the names and the bytes of all arrays in every message."""

    def __init__(self) -> None:
        self.up: set[str] = set()
        self.down: set[str] = set()
        self.bytes = {"down": 0, "up": 0}  # of the numbers and of the header before each array
        self.context: Context | None = None  # of a client that trained

    def __call__(self, message: Message, context: Context) -> Message:
        reply = app(message, context)
        for content, names, way in (
            (message.content, self.down, "down"),
            (reply.content, self.up, "up"),
        ):
            names |= {name for record in content.array_records.values() for name in record}
            if message.metadata.message_type == Action.BASELINE:
                self.context = context
                for record in content.array_records.values():
                    self.bytes[way] += sum(HEADER + one.numpy().nbytes for one in record.values())
        return reply


def rows_of(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["gate"], row["test"]): row for row in results["rows"]}


def trained(pipeline: Any) -> dict[str, np.ndarray]:
    return records.part_of(pipeline.weights, "mixture/")


def first_weights(config: Config) -> dict[str, np.ndarray]:
    network = ExpertNetwork(config, (1, 8, 8), 10)
    return {name: value.numpy() for name, value in network.state_dict().items()}


def far(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return sum(float(((one[name] - value) ** 2).sum()) for name, value in other.items())


def settings_of(system: str) -> dict[str, Any]:
    given = GIVEN if BASELINES[system].needs_given else {}
    return {**SMALL, **given, "run.system": system}


@dataclass
class Whole:
    """A run that went through."""

    pipeline: Any
    rows: dict[tuple[str, str], dict[str, Any]]
    heard: Overheard

    @property
    def trained(self) -> dict[str, np.ndarray]:
        return trained(self.pipeline)


@pytest.fixture(scope="module")
def whole(shared_pipeline: New) -> Callable[[str], Whole]:
    """By system: its run, which happens once."""

    @functools.cache
    def run(system: str) -> Whole:
        pipeline, heard = shared_pipeline(system, settings_of(system)), Overheard()
        return Whole(pipeline, rows_of(pipeline(client_app=heard)), heard)

    return run


@pytest.mark.parametrize("system", BASELINES)
def test_every_system_runs_tells_its_bytes_and_keeps_what_is_private(
    whole: Callable[[str], Whole], system: str
) -> None:
    done = whole(system)
    pipeline, heard = done.pipeline, done.heard
    expected = gates_of(pipeline.config)
    assert list(done.rows) == [(who, test) for who in expected for test in ("local", "iid")]
    for row in done.rows.values():
        assert len(row["per_client"]["accuracy"]) == 2
        assert row["accuracy"] == pytest.approx(np.mean(row["per_client"]["accuracy"]))
        assert row["extractor"] == system
    assert [line["failures"] for line in pipeline.lines] == [[] for _ in pipeline.lines]
    lines = [line for line in pipeline.lines if line["stage"] == "baseline"]
    assert sum(line["bytes_down"] for line in lines) == heard.bytes["down"] > 0
    assert sum(line["bytes_up"] for line in lines) == heard.bytes["up"] > 0
    shared = {name.partition(".")[0] for name in heard.up | heard.down}
    assert shared == TRAVELS.get(system, {"trunk", "expert"})
    experts = {name.split(".")[1] for name in heard.up if name.startswith("expert.")}
    several = 3 if BASELINES[system].several else 1
    assert len(experts) == ("expert" in shared and several)
    told = exchanges(pipeline.config)
    happened = Counter(line["stage"] for line in pipeline.lines)
    assert {stage: told[stage] for stage in happened} == happened
    costs = {f"stages.{stage}.bytes_up" for stage in (*happened, "baseline")}
    assert costs <= set(numbers_of(pipeline.config))


@pytest.mark.parametrize("system", BASELINES)
def test_costs_told_before_are_those_of_a_run(whole: Callable[[str], Whole], system: str) -> None:
    done = whole(system)
    config, shape = done.pipeline.config, (1, 8, 8)
    given = config.extractor.is_given
    latent_dim = configured_extractor(config, shape).latent_dim if given else 0
    told = system_cost(config, shape, 10, latent_dim=latent_dim, rounds=3)
    lines = [line for line in done.pipeline.lines if line["stage"] == "baseline"]
    assert told.clients == 2
    assert list(told.down) == [line["bytes_down"] for line in lines]
    assert list(told.up) == [line["bytes_up"] for line in lines]
    if system == "pfl-moe":  # which trains its head and gates after the last round
        head = told.sent - (64 * 16 + 16)
        assert told.at_home == head + (16 + 1) + (64 + 1)
        return
    assert done.heard.context is not None
    kept = Member(device_of(done.heard.context), found(BASELINES[system].system), 9).kept()
    numbers = [value.size for name, value in kept.items() if name not in ("held", "peers.")]
    assert told.at_home == sum(numbers)  # but ids, and what it was sent


@pytest.mark.parametrize("system", BASELINES)
def test_a_killed_run_goes_on_bit_by_bit(
    new_pipeline: New,
    interrupted: type[Exception],
    whole: Callable[[str], Whole],
    system: str,
) -> None:
    broken = new_pipeline(system, settings_of(system))
    with pytest.raises(interrupted):
        broken(stop=lambda line: line["stage"] == "baseline" and line["round"] == 2)
    assert rows_of(broken()) == whole(system).rows
    for name, value in whole(system).trained.items():
        np.testing.assert_array_equal(trained(broken)[name], value)


@pytest.mark.parametrize("system", [name for name, one in BASELINES.items() if one.several])
@pytest.mark.parametrize("size", ["head", "net"])
def test_one_expert_is_fedavg_bit_for_bit(
    new_pipeline: New, whole: Callable[[str], Whole], system: str, size: str
) -> None:
    alone = {
        **SMALL,
        "baseline.experts": 1,
        "baseline.held": 1,
        "baseline.size": size,
        "run.system": system,
    }
    mixture, plain = new_pipeline(system, alone), whole("fedavg")
    rows = rows_of(mixture())
    # whole networks have other names
    named = {
        name.replace("expert.0.extractor.", "trunk.").replace("expert.0.head.", "expert.0."): value
        for name, value in of_client(trained(mixture), 0).items()
        if not name.startswith("gate.")
    }
    assert named.keys() == plain.trained.keys()
    for name, value in plain.trained.items():
        if system == "fedmoe-da":  # which mixes, not by samples, but by weights in sum 1
            np.testing.assert_allclose(named[name], value, atol=1e-6)
        else:
            np.testing.assert_array_equal(named[name], value)
    for test in ("local", "iid"):
        ours, theirs = rows[system, test]["per_client"], plain.rows["fedavg", test]["per_client"]
        assert ours["accuracy"] == theirs["accuracy"]


def test_prox_without_a_pull_is_fedavg_and_a_pull_holds_it_near(
    new_pipeline: New, whole: Callable[[str], Whole]
) -> None:
    plain, begin = whole("fedavg"), first_weights(whole("fedavg").pipeline.config)
    moved = []
    for pull in (0.0, 5.0):
        changes = {**SMALL, "run.system": "fedprox", "baseline.proximal": pull}
        held = new_pipeline(f"pull-{pull:g}", {**changes, "baseline.local-steps": 3})
        held()
        moved.append(far(trained(held), begin))
    assert moved[1] < 0.9 * moved[0]
    free = new_pipeline("free", {**SMALL, "run.system": "fedprox", "baseline.proximal": 0.0})
    free()
    for name, value in plain.trained.items():
        np.testing.assert_allclose(trained(free)[name], value, atol=1e-6)


def test_whole_networks_as_experts(new_pipeline: New) -> None:
    for system in ("fedem", "fedmix"):
        pipeline = new_pipeline(system, {**SMALL, "run.system": system, "baseline.size": "net"})
        rows = rows_of(pipeline())
        assert rows["oracle", "iid"]["accuracy"] >= rows[system, "iid"]["accuracy"]
        assert not any(name.startswith("trunk.") for name in trained(pipeline))


def test_what_no_system_can_do_is_refused() -> None:
    for changes, told in (
        ({"run.system": "fedavg", "extractor.start": "runs/a"}, "extractor.start = runs/a"),
        ({"run.system": "fedem", "baseline.experts": 0}, "baseline.experts"),
        (
            {"run.system": "pfedmoe", "extractor.method": "pretrained",
             "extractor.backbone": "efficientnet-lite0"},
            "shares nothing but the trunk",
        ),
        (
            {"run.system": "fedem", "extractor.method": "pretrained", "baseline.size": "net",
             "extractor.backbone": "efficientnet-lite0"},
            "baseline.size = net trains whole networks",
        ),
        ({"run.system": "pfedmoap"}, "learns heads on frozen features"),
        ({"run.system": "fedrep", "baseline.local-steps": 1}, "leaves no step for the trunk"),
        ({"run.system": "flex-moe", "baseline.hi": 0}, "baseline.hi = 0 lets nobody train"),
        ({"run.system": "fedjetz"}, "run.system"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            Config.parse(changes)


def test_an_answer_that_is_no_number_is_named(new_pipeline: New) -> None:
    changes = {**SMALL, "run.system": "fedavg", "baseline.tuning-learning-rate": 1e30}
    with pytest.raises(NMoEError, match=r"what fine-tuned answers to the test .*: probs hold NaN"):
        new_pipeline("diverged", changes)()


def test_a_reply_of_a_client_that_breaks_is_dropped_alone(
    new_pipeline: New, failing_app: type[Any]
) -> None:
    pipeline = new_pipeline("failing", {**SMALL, "run.system": "fedem"})
    pipeline(client_app=failing_app(Action.BASELINE, partition=1, times=1))
    lines = [line for line in pipeline.lines if line["stage"] == "baseline"]
    assert [f["partition"] for f in lines[0]["failures"]] == [1]
    assert lines[1]["failures"] == []


def test_the_how_to_is_followed_literally(tmp_path: Path) -> None:
    """In a copy of the package: its file, its row, and the two commands it ends with."""
    page = (ROOT / "docs/how-to/add-a-system.md").read_text(encoding="utf-8")
    code, row = re.findall(r"```(?:python|text)\n(.*?)```", page, re.DOTALL)
    without = shutil.ignore_patterns("__pycache__")
    package = tmp_path / "there" / "nmoe_flower"
    shutil.copytree(ROOT / "nmoe_flower", package, ignore=without)
    (package.parent / code.splitlines()[0].removeprefix("# ")).write_text(code, encoding="utf-8")
    table = package / "catalogue.py"
    start = "\nBASELINES = {\n"
    before = table.read_text(encoding="utf-8")
    assert start in before
    table.write_text(before.replace(start, f"{start}{row}"), encoding="utf-8")
    commands = re.findall(r"`nmoe ([^`]+)`", page)
    assert commands == ["systems", "run --set run.system=unsure"]
    with Nmoe(tmp_path, commands[0], package=package) as listed:
        assert "nobody 2026" in listed.finish()
    short = [f"{key}={value}" for key, value in SMALL.items()]
    wanted = [*commands[1].split(), *short, "--workers", "0", "--no-figures", "--out", "runs"]
    with Nmoe(tmp_path, *wanted, package=package) as run:
        run.finish()
    (results,) = tmp_path.glob("runs/*/results.json")
    rows = rows_of(json.loads(results.read_text(encoding="utf-8")))
    assert rows.keys() == {("unsure", "local"), ("unsure", "iid")}


@pytest.fixture
def member(tmp_path: Path, cache: Path) -> Callable[[str, int], Member]:
    """A client of a system, at its initial weights, in a round."""
    values = {**SMALL, "data.cache-dir": str(cache), "baseline.local-steps": 3}

    def make(system: str, server_round: int) -> Member:
        config = Config.parse({**values, "run.system": system, "baseline.proximal": 0.0})
        device = Device(config, 0, 2, Store(tmp_path / "client"))
        return Member(device, found(BASELINES[system].system), server_round)

    return make


def test_ditto_without_a_pull_trains_alone_whatever_it_receives(
    member: Callable[[str, int], Member],
) -> None:
    alone = member("fedavg", 1).fresh()

    def loss(images: torch.Tensor, labels: torch.Tensor, _: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(alone(images)[:, 0], labels)

    for server_round in (1, 2, 3):
        member("fedavg", server_round).steps(alone, loss, purpose="personal")
        client = member("ditto", server_round)
        if server_round > 1:  # the first weights received are where it starts
            for received in client.network.parameters():
                received.data.normal_()
        client.system.train(client)
    kept = member("ditto", 4).kept()
    assert kept
    for name, value in alone.state_dict().items():
        np.testing.assert_array_equal(kept[name], value.numpy())


@pytest.mark.parametrize(
    "system", ["fedavg", "fedprox", "fedem", "fedmix", "fedmoe", "flex-moe", "fedjets"]
)
def test_rounds_of_one_client_are_its_local_training(
    shared_pipeline: New, member: Callable[[str, int], Member], system: str
) -> None:
    """Also where experts are many: one client's mean is what it sent."""
    client = member(system, 1)
    config, strategy = client.config, client.system.strategy(client.config, action=Action.BASELINE)
    strategy.cohort = lambda grid, *_: strategy.nodes(grid, 2)[:1]
    strategy.partitions, start = Partitions(), client.travelling()
    arrays = records.from_numpy({name: value.numpy().copy() for name, value in start.items()})
    with InProcessGrid(app, 2, run_config=config.flat(), workers=0) as grid:
        for server_round in (1, 2):
            sent = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
            alone = member(system, server_round)
            alone.load(sent[0])
            alone.told = records.config_of(sent[0])
            alone.system.train(alone)
            updated, _ = strategy.aggregate_train(server_round, grid.send_and_receive(sent))
            assert updated is not None
            arrays, found = updated, records.to_numpy(updated)
            for name, value in alone.travelling().items():
                np.testing.assert_allclose(found[name], value.numpy(), atol=1e-6)


@pytest.mark.parametrize("system", ["fedmoe", "fedjets", "fedmoe-da"])
def test_a_gate_that_stays_indifferent_trains_the_mean_of_all_experts(
    member: Callable[[str, int], Member], system: str
) -> None:
    """With all experts at every client the rest is FedAvg: of this uniform ensemble then."""
    ours, alone = member(system, 1), member(system, 1)
    for client in (ours, alone):
        client.network.gate.requires_grad_(False)  # it starts at 0, and all weigh alike
    ours.told = {FeedbackKey.EXPERTS: [0, 1, 2]}
    ours.system.train(ours)

    def loss(images: torch.Tensor, labels: torch.Tensor, _: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(alone.network(images).mean(dim=1), labels)

    alone.steps(alone.network, loss)
    for name, value in alone.network.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("test", ["local", "iid"])
def test_who_asks_one_expert_is_never_better_than_the_oracle(
    whole: Callable[[str], Whole], test: str
) -> None:
    rows = whole("fedjets").rows
    chosen, best = (rows[who, test]["per_client"]["accuracy"] for who in ("fedjets", "oracle"))
    assert all(one <= most for one, most in zip(chosen, best, strict=True))


def _weighed(client: Member, scores: list[float]) -> None:
    """Hold pFedMoE's gate at these scores, whatever the image."""
    *_, gate = client.network.get_submodule("weigh").children()
    assert isinstance(gate, torch.nn.Linear)
    gate.bias.data.copy_(torch.tensor(scores))


def test_a_gate_all_for_the_shared_extractor_is_fedper(
    member: Callable[[str, int], Member],
) -> None:
    ours, theirs = member("pfedmoe", 1), member("fedper", 1)
    _weighed(ours, [200.0, -200.0])  # the softmax is (1, 0) in float32
    ours.system.train(ours)
    theirs.system.train(theirs)
    for name, value in theirs.network.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], value, atol=1e-6, rtol=0)


def test_a_gate_all_for_the_private_extractor_leaves_the_shared_one_alone(
    member: Callable[[str, int], Member],
) -> None:
    client = member("pfedmoe", 1)
    object.__setattr__(client, "settings", client.settings.model_copy(update={"weight_decay": 0.0}))
    _weighed(client, [-200.0, 200.0])
    before = {name: value.clone() for name, value in client.network.state_dict().items()}
    metrics = client.system.train(client)
    after = client.network.state_dict()
    for name, value in before.items():
        if name.startswith("trunk."):
            torch.testing.assert_close(after[name], value, atol=0, rtol=0)
    assert any(not torch.equal(after[n], v) for n, v in before.items() if n.startswith("own."))
    assert metrics["shared_part"] == 0


def test_anchors_end_to_end_with_as_many_experts_as_clients(new_pipeline: New) -> None:
    """All clients are anchors: every expert is trained by one client, and each is told its own."""
    said: dict[int, set[int]] = {}

    def overhear(message: Message, context: Context) -> Message:
        told = records.config_of(message)
        if FeedbackKey.EXPERTS in told:
            client = int(context.node_config["partition-id"])
            said.setdefault(client, set()).add(int(told[BaselineKey.ANCHOR]))
            assert list(told[FeedbackKey.EXPERTS]) == [told[BaselineKey.ANCHOR]]
        return app(message, context)

    changes = {**SMALL, "run.system": "fedjets", "baseline.experts": 2, "baseline.anchors": True}
    rows = rows_of(new_pipeline("anchors", changes)(client_app=overhear))
    assert sorted(said.values(), key=min) == [{0}, {1}]
    assert rows["fedjets", "iid"]["accuracy"] <= rows["oracle", "iid"]["accuracy"]

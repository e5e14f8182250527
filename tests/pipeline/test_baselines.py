"""Published systems from data to results: what they must equal, what must stay at home."""

import functools
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from nmoe_flower import records, summary
from nmoe_flower.baselines import of_client, system_cost
from nmoe_flower.baselines.member import Member
from nmoe_flower.baselines.network import ExpertNetwork
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.client_app import app
from nmoe_flower.clients.device import Device, Store, device_of
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ConfigError, ReplyError, RoundError
from nmoe_flower.pipeline.exchanges import exchanges
from nmoe_flower.records import (
    ARRAYS,
    KEPT_ROUNDS,
    LOSS,
    NUM_EXAMPLES,
    PARTITION_ID,
    SERVER_ROUND,
    Action,
    BaselineKey,
    FeedbackKey,
    HoldingKey,
    Score,
)
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
STAGES = {
    Action.IDENTITY: "identity",
    Action.DESCRIBE: "describe",
    Action.BASELINE_INITIAL: "initial",
    Action.BASELINE: "baseline",
    Action.BASELINE_TEST: "baseline-test",
}
NOT_PRIVATE = ("held", "head.", "peers.")  # kept at home: what was sent, and what was received
KEEPS = {"ditto", "fedper", "fedrep", "fedem", "fedmix", "flex-moe", "pfedmoe", "pfedmoap"}
TELLS = {
    "fedmix": {BaselineKey.MASSES},
    "fedmoe": {BaselineKey.USAGE},
    "fedjets": {BaselineKey.USAGE},
    "flex-moe": {BaselineKey.MASSES, BaselineKey.ACCURACIES},
    "pfedmoe": {"shared_part"},
}  # with its arrays, beside loss and samples
IS_TOLD = {"fedprox": {BaselineKey.PROXIMAL}}


@dataclass
class Heard:
    """One message."""

    stage: str
    way: str
    content: RecordDict

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        found = records.of_kind(self.content, ArrayRecord).values()
        return {name: one.numpy() for record in found for name, one in record.items()}

    @property
    def said(self) -> dict[str, Any]:
        """Its metrics and its settings."""
        found = (
            records.of_kind(self.content, MetricRecord),
            records.of_kind(self.content, ConfigRecord),
        )
        return {key: v for kind in found for record in kind.values() for key, v in record.items()}


class Overheard:
    """The real app; keeps every message, and what each client that trained then has at home."""

    def __init__(self) -> None:
        self.messages: list[Heard] = []
        self.private: list[np.ndarray] = []
        self.context: Context | None = None  # of a client that trained

    def __call__(self, message: Message, context: Context) -> Message:
        reply = app(message, context)
        told = records.config_of(message)
        stage = STAGES[Action(message.metadata.message_type)]
        if told.get(BaselineKey.FINAL):
            stage = "evaluation"
        for content, way in ((message.content, "down"), (reply.content, "up")):
            self.messages.append(Heard(stage, way, content))
        if stage == "baseline":
            self.context = context
            device = device_of(context)
            system = found(BASELINES[device.config.run.system].system)
            kept = Member(device, system, int(told[SERVER_ROUND]) + 1).kept()
            self.private += [v for name, v in kept.items() if not name.startswith(NOT_PRIVATE)]
        return reply

    def names(self, way: str) -> set[str]:
        """Of all arrays."""
        return {name for one in self.messages if one.way == way for name in one.arrays}

    def bytes(self, way: str) -> Counter[str]:
        """By stage: of the numbers, and of the header before each array."""
        found = Counter[str]()
        for one in self.messages:
            if one.way == way:
                found[one.stage] += sum(HEADER + value.nbytes for value in one.arrays.values())
        return found


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
    read: set[str]  # keys of baseline.*

    @property
    def trained(self) -> dict[str, np.ndarray]:
        return trained(self.pipeline)


@pytest.fixture(scope="module")
def whole(shared_pipeline: New) -> Callable[[str], Whole]:
    """By system: its run, which happens once."""

    @functools.cache
    def run(system: str) -> Whole:
        pipeline, heard = shared_pipeline(system, settings_of(system)), Overheard()
        with pytest.MonkeyPatch.context() as patch:
            read = watched_settings(patch)
            return Whole(pipeline, rows_of(pipeline(client_app=heard)), heard, read)

    return run


def watched_settings(patch: pytest.MonkeyPatch) -> set[str]:
    """Gets the keys of ``baseline.*`` that anything but the configuration itself reads."""
    read, settings = set[str](), type(Config().baseline)

    def get(self: Any, name: str) -> Any:
        asks = sys._getframe(1).f_globals["__name__"]
        if name in settings.model_fields and not asks.startswith("nmoe_flower.config"):
            read.add(name.replace("_", "-"))
        return object.__getattribute__(self, name)

    patch.setattr(settings, "__getattribute__", get)
    return read


@pytest.mark.parametrize("system", BASELINES)
def test_a_system_reads_the_options_that_its_row_names(
    whole: Callable[[str], Whole], system: str
) -> None:
    of_some = {key for one in BASELINES.values() for key in one.reads}
    assert whole(system).read & of_some == set(BASELINES[system].reads)


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
    for way, stages in (("down", ("baseline", "baseline-test", "evaluation")),
                        ("up", ("initial", "baseline"))):  # fmt: skip
        told = Counter[str]()
        for line in pipeline.lines:
            told[line["stage"]] += line[f"bytes_{way}"]
        assert told == heard.bytes(way)
        assert {stage for stage, size in told.items() if size} == set(stages)
    up = heard.names("up")
    shared = {name.partition(".")[0] for name in up | heard.names("down")}
    assert shared == TRAVELS.get(system, {"trunk", "expert"})
    experts = {name.split(".")[1] for name in up if name.startswith("expert.")}
    several = 3 if BASELINES[system].several else 1
    assert len(experts) == ("expert" in shared and several)
    counted = exchanges(pipeline.config)
    happened = Counter(line["stage"] for line in pipeline.lines)
    assert {stage: counted[stage] for stage in happened} == happened
    costs = {f"stages.{stage}.bytes_up" for stage in (*happened, "baseline")}
    assert costs <= set(numbers_of(pipeline.config))


def sayable(system: str, answers: Sequence[str]) -> dict[tuple[str, str], set[str]]:
    """By stage and way: all that may be said beside arrays."""
    scores = {f"{score}-{test}" for test in ("local", "iid")
              for score in (Score.ACCURACY, Score.BALANCED_ACCURACY, Score.MACRO_F1)}  # fmt: skip
    held = {HoldingKey.TRAIN_COUNTS, HoldingKey.TEST_COUNTS, HoldingKey.CLASSES}
    given = {HoldingKey.EXTRACTOR} if BASELINES[system].needs_given else set()
    asked = {FeedbackKey.EXPERTS, SERVER_ROUND, KEPT_ROUNDS}
    return {
        ("identity", "up"): {NUM_EXAMPLES, PARTITION_ID},
        ("describe", "up"): {NUM_EXAMPLES, HoldingKey.FINGERPRINT, HoldingKey.PRECISION}
        | held
        | given,
        ("initial", "up"): {NUM_EXAMPLES},
        ("baseline", "down"): asked | IS_TOLD.get(system, set()),
        ("baseline", "up"): {NUM_EXAMPLES, LOSS} | TELLS.get(system, set()),
        ("baseline-test", "down"): {SERVER_ROUND},
        ("baseline-test", "up"): {NUM_EXAMPLES, "accuracy-local", "accuracy-iid"},
        ("evaluation", "down"): {SERVER_ROUND, BaselineKey.FINAL},
        ("evaluation", "up"): {NUM_EXAMPLES, *(f"{a}/{s}" for a in answers for s in scores)},
    }


@pytest.mark.parametrize("system", BASELINES)
def test_what_is_private_is_in_no_message(whole: Callable[[str], Whole], system: str) -> None:
    """Nor under another name: no row of it is in any array, and no number of it is said.

    Rows of one number, or of equal ones, such as a bias that never moved, tell nobody apart.
    """
    done = whole(system)
    said: dict[tuple[str, str], set[str]] = {}
    for one in done.heard.messages:
        said.setdefault((one.stage, one.way), set()).update(one.said)
    allowed = sayable(system, gates_of(done.pipeline.config))
    assert {place: keys for place, keys in said.items() if keys} == allowed
    assert bool(done.heard.private) == (system in KEEPS)
    rows = {
        row.tobytes()
        for value in done.heard.private
        for row in value.reshape(-1, value.shape[-1])
        if np.ptp(row) > 0
    }
    assert bool(rows) == (system in KEEPS)
    numbers = {float(x) for value in done.heard.private for x in value.flat} - {0.0, 1.0}
    for one in done.heard.messages:
        for value in one.arrays.values():
            sent = value.tobytes()
            assert not any(row in sent for row in rows)
        for told in one.said.values():
            assert numbers.isdisjoint(np.atleast_1d(told).tolist())


@pytest.mark.parametrize("system", BASELINES)
def test_costs_told_before_are_those_of_a_run(whole: Callable[[str], Whole], system: str) -> None:
    done = whole(system)
    config, shape = done.pipeline.config, (1, 8, 8)
    told = system_cost(config, shape, 10, rounds=3)
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
    received = ("held", "peers.")
    numbers = [value.size for name, value in kept.items() if not name.startswith(received)]
    assert told.at_home == sum(numbers)  # but ids, and what it was sent


def test_what_is_not_finite_is_never_kept_at_home(member: Callable[..., Member]) -> None:
    """Or the client would begin every later round with it."""
    member("fedper", 1).keep({"head": torch.ones(2)})
    with pytest.raises(ReplyError, match="head, which stays at home, is not finite"):
        member("fedper", 2).keep({"head": torch.tensor([1, torch.nan])})
    np.testing.assert_array_equal(member("fedper", 3).kept()["head"], np.ones(2))


def test_clients_that_all_diverge_are_told_together_with_what_to_lower(new_pipeline: New) -> None:
    changes = {**SMALL, "run.system": "ditto", "baseline.proximal": 1e9, "baseline.local-steps": 8}
    with pytest.raises(RoundError, match=r"\(clients 0, 1: [^;]*: lower baseline.learning-rate or "
                       r"baseline.proximal\)"):  # fmt: skip
        new_pipeline("diverged", changes)()


@pytest.mark.parametrize(
    ("system", "high"),
    [("fedavg", "learning-rate"), ("fedprox", "learning-rate or baseline.proximal")],
)
def test_who_would_send_what_is_not_finite_is_told_what_to_lower(
    new_pipeline: New, system: str, high: str
) -> None:
    changes = {**SMALL, "run.system": system, "baseline.learning-rate": 1e30}
    told = rf"which would leave, is not finite after training: lower baseline.{high}\)"
    with pytest.raises(RoundError, match=rf"\(clients 0, 1: [^;]*{told}"):
        new_pipeline("diverged", changes)()


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


def test_a_head_without_a_pool_is_fedavgs_linear_head_bit_for_bit(new_pipeline: New) -> None:
    """No neighbours, no gate; where heads are linear, FedAvg on the same extractor."""
    changes = {**SMALL, **GIVEN, "baseline.experts": 1, "extractor.head": "linear"}
    pooled, plain = (
        new_pipeline(system, {**changes, "run.system": system}) for system in ("pfedmoap", "fedavg")
    )
    pooled()
    plain()
    assert trained(pooled).keys() == trained(plain).keys()
    for name, value in trained(plain).items():
        np.testing.assert_array_equal(trained(pooled)[name], value)


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
        (
            {"run.system": "fedavg", "extractor.start": "runs/a"},
            "extractor.start = runs/a is for baseline.trunk = stage-1, and run.system = fedavg "
            "draws its trunk",
        ),
        (
            {"run.system": "fedavg", "baseline.trunk": "stage-1", **GIVEN},
            "extractor.method = pretrained stands on tests.given_backbone:Tiny, which is given",
        ),
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
        ({"run.system": "fedjetz"}, "run.system.*did you mean fedjets"),
        ({"run.system": "FedEM"}, "run.system.*did you mean fedem"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            Config.parse(changes)


def test_an_answer_beside_the_system_that_is_no_number_is_left_out_and_named(
    new_pipeline: New, whole: Callable[[str], Whole], caplog: pytest.LogCaptureFixture
) -> None:
    changes = {**SMALL, "run.system": "fedavg", "baseline.tuning-learning-rate": 1e30}
    results = new_pipeline("diverged", changes)()
    rows, others = rows_of(results), whole("fedavg").rows
    assert rows == {key: row for key, row in others.items() if key[0] != "fine-tuned"}
    assert [line.getMessage() for line in caplog.records if line.levelname == "WARNING"] == [
        "what fine-tuned answers at clients 0, 1 is not finite, and has no row in the results: "
        "lower baseline.tuning-learning-rate"
    ]
    why = "what it answers at clients 0, 1 is not finite: lower baseline.tuning-learning-rate"
    assert results["diverged"] == {"fine-tuned": why}
    (told,) = summary._findings(results)
    assert told.startswith(f"WARNING  fine-tuned: {why[:50]}")


def test_a_row_of_those_clients_alone_where_all_went_well_is_none(
    new_pipeline: New, caplog: pytest.LogCaptureFixture
) -> None:
    def spoilt(message: Message, context: Context) -> Message:
        reply = app(message, context)
        own = f"own/{Score.ACCURACY}-iid"
        if context.node_config["partition-id"] == 1 and own in (
            told := reply.content.metric_records.get(records.METRICS, {})
        ):
            told[own] = float("nan")
        return reply

    rows = rows_of(new_pipeline("spoilt", settings_of("fedavg"))(client_app=spoilt))
    assert {who for who, _ in rows} == {"fedavg", "fine-tuned", "majority"}
    assert "what own answers at client 1 is not finite" in caplog.text
    assert "lower baseline.learning-rate" in caplog.text


def test_what_a_system_itself_answers_must_be_a_number(new_pipeline: New) -> None:
    changes = {**SMALL, "run.system": "pfl-moe", "baseline.tuning-learning-rate": 1e30}
    told = (
        "what pfl-mf answers to the test local is not finite: lower baseline.tuning-learning-rate"
    )
    with pytest.raises(RoundError, match=told):
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
def member(tmp_path: Path, cache: Path) -> Callable[..., Member]:
    """A client of a system, at its initial weights, in a round."""

    def make(
        system: str, server_round: int, *, partition: int = 0, changes: dict[str, Any] | None = None
    ) -> Member:
        values = {
            **settings_of(system),
            "data.cache-dir": str(cache),
            "run.out": str(tmp_path / "runs"),
            "baseline.local-steps": 3,
            "baseline.proximal": 0.0,
            **(changes or {}),
        }
        store = Store(tmp_path / f"client-{partition}")
        device = Device(Config.parse(values), partition, 2, store)
        return Member(device, found(BASELINES[system].system), server_round)

    return make


def test_ditto_without_a_pull_trains_alone_whatever_it_receives(
    member: Callable[..., Member],
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


def test_the_halves_of_a_fedrep_round_have_noise_of_their_own(
    member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three steps two train the head; the loss told is the mean of all three."""
    losses, steps = [], Member.steps

    def told(self: Member, *args: Any, **how: Any) -> float:
        losses.append(steps(self, *args, **how))
        return losses[-1]

    monkeypatch.setattr(Member, "steps", told)

    def noises(system: str) -> tuple[list[int], float]:
        client, seen = member(system, 2), []
        augment = client.device.augment

        def watched(images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
            seen.append(noise.initial_seed())
            return augment(images, noise)

        vars(client.device)["augment"] = watched
        return seen, cast(float, client.system.train(client)["loss"])

    (first, again, of_trunk), loss = noises("fedrep")
    assert first == again != of_trunk
    assert loss == pytest.approx((2 * losses[0] + losses[1]) / 3)
    assert noises("fedper")[0] == [first] * 3  # as in all other systems


def ensemble_steps(client: Member, network: ExpertNetwork) -> None:
    """A round of training on the mean of all experts' logits; of one: on its own."""

    def loss(images: torch.Tensor, labels: torch.Tensor, _: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(network(images).mean(dim=1), labels)

    client.steps(network, loss)


ONE_NETWORK = ("fedavg", "fedprox", "ditto", "fedper", "pfl-moe")


@pytest.mark.parametrize("system", BASELINES)
def test_rounds_of_one_client_are_its_local_training(
    member: Callable[..., Member], system: str
) -> None:
    """Also where experts are many: one client's mean is what it sent.

    Beside it a client trains that receives no array, and reads none at home: its network goes on as
    it is. Where that is one network, trained as one, this is plain training. FedMoE-DA is without
    neighbours, as a client's own experts are each other's.
    """
    changes = {"baseline.neighbours": 0}
    client, heard = member(system, 1, changes=changes), Overheard()
    config, strategy = client.config, client.system.strategy(client.config, action=Action.BASELINE)
    strategy.cohort = lambda grid, *_: strategy.nodes(grid, 2)[:1]
    strategy.partitions = Partitions()
    mine = {name: value.numpy().copy() for name, value in client.network.state_dict().items()}
    arrays = records.pack(client.travelling())
    with InProcessGrid(heard, 2, run_config=config.flat(), workers=0) as grid:
        for server_round in (1, 2):
            sent = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
            alone = member(system, server_round, changes=changes)
            records.load_into(alone.network.state_dict(), mine)
            alone.told = records.config_of(sent[0])
            alone.system.train(alone)
            mine |= {
                name: value.numpy().copy() for name, value in alone.network.state_dict().items()
            }
            updated, _ = strategy.aggregate_train(server_round, grid.send_and_receive(sent))
            assert updated is not None
            arrays, got = updated, of_client(records.to_numpy(updated), 0)
            assert got.keys() == client.travelling().keys()
            for name, value in got.items():
                np.testing.assert_allclose(value, mine[name], atol=1e-6)
    assert heard.context is not None
    at_home = Member(device_of(heard.context), client.system, 3).kept()
    kept = member(system, 3, changes=changes).kept()
    assert at_home.keys() == kept.keys()
    wanted = kept if system == "ditto" else {**kept, **mine}  # whose other network has these names
    for name, value in at_home.items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-6)
    if system in ONE_NETWORK:
        plain = client.fresh()
        for server_round in (1, 2):
            ensemble_steps(member("fedavg", server_round), plain)
        for name, tensor in plain.state_dict().items():
            np.testing.assert_allclose(mine[name], tensor.numpy(), atol=1e-6)


@pytest.mark.parametrize("system", ["fedmoe", "fedjets", "flex-moe", "fedmoe-da"])
def test_a_gate_that_stays_indifferent_trains_the_mean_of_all_experts(
    member: Callable[..., Member], system: str
) -> None:
    """With all experts at every client the rest is FedAvg: of this uniform ensemble then."""
    ours, alone = member(system, 1), member(system, 1)
    for client in (ours, alone):
        client.network.gate.requires_grad_(False)  # it starts at 0, and all weigh alike
    ours.told = {FeedbackKey.EXPERTS: [0, 1, 2]}
    ours.system.train(ours)
    ensemble_steps(alone, alone.network)
    for name, value in alone.network.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("system", ["fedmoe", "fedjets", "flex-moe"])
def test_an_indifferent_gate_and_all_experts_everywhere_are_fedavg_of_the_ensemble(
    member: Callable[..., Member], system: str
) -> None:
    """Two clients, one with half the images, two rounds, through the server.

    FLEX-MoE weighs by use, which is a third of the images for each of three experts: as by images.
    FedMoE-DA mixes experts of both, and is none.
    """
    changes = {"baseline.held": 3}
    first = member(system, 1, changes=changes)

    def of(partition: int, server_round: int) -> Member:
        client = member(system, server_round, partition=partition, changes=changes)
        indices = client.device.indices
        fewer = replace(indices, train=indices.train[: len(indices.train) // (1 + partition)])
        vars(client.device)["indices"] = fewer
        client.network.gate.requires_grad_(False)
        return client

    def frozen(message: Message, context: Context) -> Message:
        told, partition = records.config_of(message), cast(int, context.node_config[PARTITION_ID])
        if SERVER_ROUND not in told:
            return app(message, context)
        client = of(partition, int(told[SERVER_ROUND]))
        client.load(message)
        client.told = told
        metrics = client.system.train(client)
        sent = {ARRAYS: records.pack(client.travelling())}
        count = {NUM_EXAMPLES: len(client.labels)}
        return records.reply(message, metrics={**count, **metrics}, arrays=sent)

    strategy = first.system.strategy(first.config, action=Action.BASELINE)
    arrays = records.pack(first.travelling())
    wanted = {name: value.numpy().copy() for name, value in first.network.state_dict().items()}
    with InProcessGrid(frozen, 2, run_config=first.config.flat(), workers=0) as grid:
        for server_round in (1, 2):
            sent = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
            replies = grid.send_and_receive(list(sent))
            updated, _ = strategy.aggregate_train(server_round, replies)
            assert updated is not None
            arrays, parts, weights = updated, [], []
            for partition in (0, 1):
                alone = of(partition, server_round)
                records.load_into(alone.network.state_dict(), wanted)
                ensemble_steps(alone, alone.network)
                parts.append({n: v.numpy() for n, v in alone.network.state_dict().items()})
                weights.append(len(alone.labels))
            wanted = {
                name: np.average([part[name] for part in parts], axis=0, weights=weights)
                for name in wanted
            }
    for name, value in records.to_numpy(arrays).items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-6)


READS = {"fedem": 1, "fedmix": 1, "fedmoe": 1, "fedjets": 1, "flex-moe": 1, "fedmoe-da": 0}


@pytest.mark.parametrize("system", [name for name, one in BASELINES.items() if one.several])
def test_all_heads_read_one_pass_of_the_trunk(member: Callable[..., Member], system: str) -> None:
    """A step is one pass with gradients, of its batch, and not one for each of five heads.

    Without gradients the trunk reads the training images once more, where a system measures its
    experts on them.
    """
    client = member(system, 1, changes={"baseline.experts": 5, "baseline.held": 5})
    client.told = {FeedbackKey.EXPERTS: list(range(5))}
    passes: dict[bool, list[int]] = {True: [], False: []}
    client.network.trunk.register_forward_hook(
        lambda _, inputs, __: passes[torch.is_grad_enabled()].append(len(inputs[0]))
    )
    client.system.train(client)
    assert len(client.network.expert) == 5
    assert passes[True] == [16] * 3
    assert sum(passes[False]) == READS[system] * len(client.labels)


@pytest.mark.parametrize("system", ["fedem", "fedmix", "fedjets"])
def test_an_expert_drawn_for_each_image_is_one_of_them_and_never_better_than_the_oracle(
    whole: Callable[[str], Whole], system: str
) -> None:
    rows = whole(system).rows
    for test in ("local", "iid"):
        drawn, best = (rows[who, test]["per_client"]["accuracy"] for who in ("random", "oracle"))
        assert all(one <= most for one, most in zip(drawn, best, strict=True))
    context = whole(system).heard.context
    assert context is not None
    client = Member(device_of(context), found(BASELINES[system].system), 1)
    answers = client.system.answers(client, final=True)
    every, answer = client.predict(client.network, client.training), answers["random"]
    drawn = answer(client.training)
    which = (every.softmax(dim=2) - drawn[:, None]).abs().amax(dim=2).argmin(dim=1)
    torch.testing.assert_close(every.softmax(dim=2)[torch.arange(len(which)), which], drawn)
    shares = which.bincount(minlength=every.shape[1]) / len(which)
    spread = 4 * float((1 / every.shape[1] / len(which)) ** 0.5)  # of a share, four times over
    assert all(abs(float(share) - 1 / every.shape[1]) < spread for share in shares)
    assert torch.equal(answer(client.training), drawn)


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
    member: Callable[..., Member],
) -> None:
    ours, theirs = member("pfedmoe", 1), member("fedper", 1)
    _weighed(ours, [200.0, -200.0])  # the softmax is (1, 0) in float32
    ours.system.train(ours)
    theirs.system.train(theirs)
    for name, value in theirs.network.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], value, atol=1e-6, rtol=0)


def test_a_gate_all_for_the_private_extractor_leaves_the_shared_one_alone(
    member: Callable[..., Member],
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


def test_anchors_end_to_end_with_as_many_experts_as_clients(
    new_pipeline: New, tmp_path: Path
) -> None:
    """All clients are anchors: each is told its own expert, which is then its own training.

    Experts are whole networks here: heads would share a trunk.
    """
    said: dict[int, set[int]] = {}

    def overhear(message: Message, context: Context) -> Message:
        told = records.config_of(message)
        if FeedbackKey.EXPERTS in told:
            client = int(context.node_config["partition-id"])
            said.setdefault(client, set()).add(int(told[BaselineKey.ANCHOR]))
            assert list(told[FeedbackKey.EXPERTS]) == [told[BaselineKey.ANCHOR]]
        return app(message, context)

    changes = {**SMALL, "run.system": "fedjets", "baseline.experts": 2, "baseline.anchors": True,
               "baseline.size": "net"}  # fmt: skip
    pipeline = new_pipeline("anchors", changes)
    rows = rows_of(pipeline(client_app=overhear))
    assert sorted(said.values(), key=min) == [{0}, {1}]
    assert rows["fedjets", "iid"]["accuracy"] <= rows["oracle", "iid"]["accuracy"]
    for client, (expert,) in said.items():
        device = Device(pipeline.config, client, 2, Store(tmp_path / "alone"))
        alone = Member(device, found(BASELINES["fedjets"].system), 1).network.expert[str(expert)]

        def loss(
            images: torch.Tensor,
            labels: torch.Tensor,
            _: np.ndarray,
            network: torch.nn.Module = alone,
        ) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(network(images), labels)

        for server_round in (1, 2, 3):
            Member(device, found(BASELINES["fedjets"].system), server_round).steps(alone, loss)
        for name, value in alone.state_dict().items():
            got = trained(pipeline)[f"expert.{expert}.{name}"]
            np.testing.assert_allclose(got, value.numpy(), atol=1e-6)

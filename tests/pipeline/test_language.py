"""The language system on a folder of made-up text: three clients whose words differ."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower import records
from nmoe_flower.backbone import configured_language
from nmoe_flower.checkpoint import Checkpoints
from nmoe_flower.client_app import app
from nmoe_flower.clients import language
from nmoe_flower.clients.device import Store
from nmoe_flower.config import Config
from nmoe_flower.data.text import configured_text
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import CheckpointError, ConfigError, RoundError
from nmoe_flower.pipeline import Run, exchanges, run_pipeline
from nmoe_flower.privacy import epsilon_spent
from nmoe_flower.records import Action, TextKey
from nmoe_flower.study.costs import cost_of
from tests.domain_text import TINY_LANGUAGE, WORDS, write_domains

CONTROLS = "frozen,soup,uniform,fedavg,fedavg-frozen-a,fedavg-exact,fedavg-large"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_domains(tmp_path_factory.mktemp("texts"), documents=20)


def settings(texts: Path, **changes: Any) -> Config:
    return Config.parse(
        {
            **TINY_LANGUAGE,
            "run.precision": "float32",
            "data.dataset": str(texts),
            "data.num-clients": 3,
            "data.train-per-client": 40,
            "data.test-per-client": 6,
            "data.validation-per-client": 6,
            "adapter.blocks": "all",
            "adapter.steps": 10,
            "adapter.times": 2,
            "adapter.learning-rates": "0.03",
            "adapter.controls": "frozen,soup,uniform,fedavg",
            "gate.methods": "unigram,likelihood,local,domain,oracle",
            **{key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()},
        }
    )


class Interrupted(Exception):  # noqa: N818
    """Stands for kill -9."""


def carried_out(
    config: Config,
    folder: Path,
    *,
    client_app: Any = app,
    stop: Callable[[Mapping[str, Any]], bool] = lambda _: False,
) -> tuple[dict[str, Any], Run, list[Mapping[str, Any]]]:
    """Run, or go on with, the pipeline of a configuration."""
    lines: list[Mapping[str, Any]] = []

    def journal(record: Mapping[str, Any]) -> None:
        lines.append(record)
        if stop(record):
            raise Interrupted

    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    told = Config.parse({**config.flat(), "run.out": str(folder.parent), "run.name": folder.name})
    with InProcessGrid(client_app, told.data.num_clients, run_config=told.flat()) as grid:
        run = Run(grid, told, journal, checkpoints=checkpoints)
        if checkpoint := checkpoints.latest():
            run.restore(checkpoint)
        results = run_pipeline(run)
    assert results is not None
    return results, run, lines


def by_gate(results: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["gate"], row["test"]): row for row in results["rows"]}


@pytest.fixture(scope="module")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = settings(texts, adapter__controls=CONTROLS, adapter__learning_rates="0.01,0.03")
    return carried_out(config, tmp_path_factory.mktemp("whole") / "run")


def test_every_gate_and_control_has_a_row_in_every_test(whole: Any) -> None:
    rows = by_gate(whole[0])
    gates = ["unigram", "likelihood", "local", "domain", "oracle"]
    gates += [f"control:{name}" for name in CONTROLS.split(",")]
    assert rows.keys() == {(g, t) for g in gates for t in ("local", "iid", "validation")}
    for row in rows.values():
        assert len(row["per_client"]["bits_per_byte"]) == 3
        assert row["domains"].keys() == WORDS.keys()
        assert row["worst_bits_per_byte"] == max(row["per_client"]["bits_per_byte"])


def test_experts_of_other_words_beat_one_adapter_for_all(whole: Any) -> None:
    """The unigram gate knows whose words it sees; then it is as if it were told."""
    found = {key: row["bits_per_byte"] for key, row in by_gate(whole[0]).items()}
    for test in ("local", "iid"):
        assert found["domain", test] < found["control:fedavg", test] < found["control:frozen", test]
        assert found["unigram", test] == pytest.approx(found["domain", test], abs=0.02)
        assert found["oracle", test] <= found["domain", test] + 1e-6
    assert found["local", "local"] == pytest.approx(found["domain", "local"], rel=1e-6)
    assert found["local", "iid"] > found["domain", "iid"]


def test_routes_are_those_of_the_questions_that_a_row_counts(whole: Any) -> None:
    rows, routing = by_gate(whole[0]), whole[0]["routing"]
    for gate in ("unigram", "likelihood", "local", "domain", "oracle"):
        for test in ("local", "iid", "validation"):
            routes = np.array(routing[f"{gate}/{test}"])
            assert routes.sum(axis=1) == pytest.approx(1)
            ratio = rows[gate, test]["per_client"]["local_ratio"]
            assert routes.diagonal() == pytest.approx(ratio)
    assert np.array(routing["domain/iid"]) == pytest.approx(1 / 3)
    assert np.array(routing["local/iid"]) == pytest.approx(np.eye(3))


def test_gates_decide_again_lean_home_and_hide_what_was_written(
    texts: Path, tmp_path: Path
) -> None:
    """Where all scores lean home by far every gate is the own expert; a histogram is paid for."""
    gates = "unigram,unigram-chunks,likelihood,likelihood-chunks,local,domain"
    common = {"gate__methods": gates, "adapter__controls": "frozen", "adapter__steps": 4,
              "text__chunk": 3, "text__recent": 4, "text__candidates": 2}  # fmt: skip
    results, run, _ = carried_out(
        settings(texts, **common, privacy__tokens=True, privacy__delta=1e-3), tmp_path / "private"
    )
    rows = by_gate(results)
    assert {gate for gate, _ in rows} == {*gates.split(","), "control:frozen"}
    for test in ("local", "iid"):
        told = rows["domain", test]["bits_per_byte"]
        for gate in ("unigram", "unigram-chunks", "likelihood-chunks"):
            assert rows[gate, test]["bits_per_byte"] == pytest.approx(told, rel=0.2)
    noisy = run.artifacts.frequencies
    assert noisy is not None
    assert np.exp(noisy.astype(float)).sum(axis=1) == pytest.approx(1, abs=0.02)
    ledgers = list((tmp_path / "private").rglob("privacy.json"))
    assert len(ledgers) == 3
    leaning = settings(texts, **common, gate__home_bias=1e6, gate__top_k=2)
    results, run, _ = carried_out(leaning, tmp_path / "leaning")
    rows = by_gate(results)
    for gate in gates.split(",")[:4]:
        for test in ("local", "iid"):
            assert rows[gate, test]["local_ratio"] == pytest.approx(0.5)  # of two that are asked
            wanted = rows["local", test]["per_client"]["bits_per_byte"]
            assert rows[gate, test]["per_client"]["bits_per_byte"] == pytest.approx(wanted)
    assert run.artifacts.frequencies is not None
    assert not np.array_equal(run.artifacts.frequencies, noisy)


def test_the_posterior_is_the_mixture_of_whole_texts(texts: Path, tmp_path: Path) -> None:
    """By the chain rule: what it loses token by token is -log sum_e w_e prod_t p_e(t).

    The w_e are the shares of the experts by what they made of the prefix, of all or of unigram's
    best two.
    """
    for candidates in (0, 2):
        config = settings(
            texts, gate__methods="unigram,posterior,domain", gate__top_k=1,
            adapter__controls="frozen", text__candidates=candidates, text__packing="document",
        )  # fmt: skip
        results, run, _ = carried_out(config, tmp_path / f"of-{candidates}")
        row = by_gate(results)["posterior", "local"]
        assert row["top_k"] == (candidates or 3)
        data = configured_text(config)
        frequencies = run.artifacts.frequencies
        assert frequencies is not None
        for client in range(3):
            split = data.test.of_client(client)
            nats = Store(tmp_path / f"of-{candidates}/clients/{client}").load("answers")["local"]
            after, total = split.scored(config.text.prefix), 0.0
            for window, tokens, counts in zip(nats.astype(float), split.tokens, after, strict=True):
                before = -window[:, : config.text.prefix - 1].sum(axis=1)
                cheap = frequencies.astype(float)[:, tokens[: config.text.prefix]].sum(axis=1)
                asked = np.argsort(-cheap)[: candidates or 3]
                share = np.exp(before[asked] - before[asked].max())
                likely = np.exp(-(window * counts).sum(axis=1))[asked]
                total -= np.log(share @ likely / share.sum())
            bits = total / split.scored_bytes(config.text.prefix).sum() / np.log(2)
            assert row["per_client"]["bits_per_byte"][client] == pytest.approx(bits, rel=1e-5)


STATE_GATES = "prototype,lda,federated,prototype-chunks,lda-chunks,federated-chunks"


@pytest.fixture(scope="module")
def routed(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = settings(
        texts, gate__methods=f"{STATE_GATES},domain,local", adapter__controls="frozen,uniform",
        gate__rounds=8, gate__local_steps=1, gate__fraction_train=1.0, text__chunk=4,
    )  # fmt: skip
    return carried_out(config, tmp_path_factory.mktemp("routed") / "run")


def prefixes(config: Config, split: str) -> list[np.ndarray]:
    """Mean states of each client's prefixes at norm 1: one block of two by hand."""
    data = configured_text(config)
    model, _ = configured_language(config, data.vocab_size)
    found = []
    for client in range(3):
        tokens = getattr(data, split).of_client(client).tokens[:, : config.text.prefix]
        network: Any = model.network
        with torch.no_grad():
            at = torch.arange(tokens.shape[1])
            hidden = network.tokens(torch.from_numpy(tokens.astype(int))) + network.places(at)
            hidden = network.blocks[0](hidden).double().numpy()
        unit = hidden / np.sqrt(np.square(hidden).mean(axis=2, keepdims=True))
        means = unit.mean(axis=1)
        found.append(means / np.sqrt(np.square(means).sum(axis=1, keepdims=True)))
    return found


def differences(gate: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Scores of each expert less those of the first."""
    scores = rows @ gate["weight"].T.astype(float) + gate["bias"]
    return np.asarray(scores - scores[:, :1])


def test_gates_of_states_are_what_their_formulas_say(routed: Any) -> None:
    _, run, _ = routed
    parts = prefixes(run.config, "train")
    everything = np.concatenate(parts)
    deviation = everything.std(axis=0)
    z = [(part - everything.mean(axis=0)) / deviation for part in parts]
    means = [part.mean(axis=0) for part in z]
    tested = np.concatenate(prefixes(run.config, "test"))
    rows = (tested - everything.mean(axis=0)) / deviation
    near = np.array([[-0.5 * np.square(r - m).sum() / 16**0.5 for m in means] for r in rows])
    found = differences(run.artifacts.gates["prototype"], tested)
    assert found == pytest.approx(near - near[:, :1], abs=1e-3)
    within = sum((part - m).T @ (part - m) for part, m in zip(z, means, strict=True))
    covariance = within / len(everything)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / 16 * np.eye(16)
    inverse = np.linalg.inv(shrunk)
    density = np.array([[-0.5 * (r - m) @ inverse @ (r - m) for m in means] for r in rows])
    found = differences(run.artifacts.gates["lda"], tested)
    assert found == pytest.approx(density - density[:, :1], rel=1e-3, abs=1e-3)


def test_fedgate_of_text_climbs_the_likelihood_of_the_mixture(routed: Any) -> None:
    """Token by token by hand: p - r for each token's scores, one step of length one a round."""
    _, run, _ = routed
    data = configured_text(run.config)
    model, _ = configured_language(run.config, data.vocab_size)
    standard = [run.artifacts.text_standard[f"standard-{n}"] for n in ("mean", "scale")]
    rows = [
        (part - standard[0]) * standard[1] / 16**0.5 for part in prefixes(run.config, "validation")
    ]
    experts = [records.part_of(run.artifacts.adapters, f"{e}/") for e in range(3)]
    weight, bias = np.zeros((3, 16)), np.zeros(3)
    answers = []
    for client in range(3):
        split = data.validation.of_client(client)
        likely = []
        for expert in experts:
            model.load({n: v for n, v in expert.items() if n != "backbone"})
            likely.append(np.exp(-model.score(split.tokens).astype(float)))
        answers.append((np.stack(likely, axis=1), split.scored(run.config.text.prefix)))
    for current in range(1, 9):
        rate, moved = 0.05 * (1 + np.cos(np.pi * (current - 1) / 8)) / 2, []
        for states, (likely, scored) in zip(rows, answers, strict=True):
            of_weight, of_bias = np.zeros((3, 16)), np.zeros(3)
            for state, tokens, counts in zip(states, likely, scored, strict=True):
                share = np.exp(weight @ state + bias)
                share /= share.sum()
                for token in tokens[:, counts].T:
                    pull = share - share * token / (share @ token)
                    of_weight, of_bias = of_weight + np.outer(pull, state), of_bias + pull
            length = np.sqrt(np.square(of_weight).sum() + np.square(of_bias).sum())
            moved.append((weight - rate * of_weight / length, bias - rate * of_bias / length))
        weight, bias = (np.mean(part, axis=0) for part in zip(*moved, strict=True))
    tested = np.concatenate(prefixes(run.config, "test"))
    wanted = (tested - standard[0]) * standard[1] / 16**0.5 @ weight.T + bias
    found = differences(run.artifacts.gates["federated"], tested)
    assert found == pytest.approx(wanted - wanted[:, :1], abs=1e-4)
    assert np.abs(found).max() > 0.05


def test_words_that_differ_are_routed_by_their_states(routed: Any) -> None:
    results, run, lines = routed
    rows = by_gate(results)
    for gate in STATE_GATES.split(","):
        for test in ("local", "iid", "validation"):
            row = rows[gate, test]
            assert row["bits_per_byte"] < rows["control:uniform", test]["bits_per_byte"]
            assert 0 <= row["local_ratio"] <= 1
    for gate in ("prototype", "lda"):
        assert rows[gate, "local"]["local_ratio"] > 0.8
    counted: dict[str, int] = {}
    for line in lines:
        counted[line["stage"]] = counted.get(line["stage"], 0) + 1
    foretold = exchanges(run.config)
    assert foretold.pop("identity") == 1
    assert counted == foretold
    assert cost_of(results, run.config, "lda", None).exchanges == 2
    assert cost_of(results, run.config, "federated-chunks", None).exchanges == 3 + 8


def test_histograms_and_states_are_paid_for_together(texts: Path, tmp_path: Path) -> None:
    """Half the budget's square each; what is asked for again is told again."""
    config = settings(
        texts, gate__methods="unigram,prototype,lda", adapter__controls="frozen",
        adapter__steps=1, privacy__enabled=True, privacy__tokens=True, privacy__delta=1e-3,
        data__validation_per_client=0,
    )  # fmt: skip
    told = carried_out(config, tmp_path / "run")[0]["privacy"]
    assert (told["unit"], told["releases"], told["budget"]) == ("window", 2, 8.0)
    assert told["epsilon"] == pytest.approx(8.0)
    assert told["statement"].startswith("Histograms of tokens and sums of hidden states, together")
    for ledger in (tmp_path / "run").rglob("privacy.json"):
        ((noise, count),) = next(iter(json.loads(ledger.read_text())["spent"].values()))
        assert count == 2
        assert epsilon_spent(noise, 2, 1e-3) == pytest.approx(8.0)
    loose = Config.parse({**config.flat(), "privacy.epsilon": 1e9})
    rows = by_gate(carried_out(loose, tmp_path / "loose")[0])
    for gate in ("prototype", "lda"):
        assert rows[gate, "local"]["local_ratio"] > 0.8
        gap = [rows[g, "iid"]["bits_per_byte"] for g in (gate, "control:frozen")]
        assert gap[0] < gap[1]


def test_bits_per_byte_are_those_of_the_scored_bytes(whole: Any) -> None:
    """A fresh byte model knows nothing: log2 of 257 tokens, one byte each."""
    row = by_gate(whole[0])["control:frozen", "local"]
    assert row["bits_per_byte"] == pytest.approx(np.log2(257), abs=0.1)
    assert row["perplexity"] == pytest.approx(2 ** row["bits_per_byte"], rel=1e-3)


def test_what_stays_at_home_costs_nothing(whole: Any) -> None:
    rows = by_gate(whole[0])
    assert rows["local", "iid"]["local_ratio"] == 1.0
    assert rows["local", "iid"]["bytes_per_sample"] == 0.0
    assert rows["domain", "local"]["local_ratio"] == 1.0
    assert rows["domain", "iid"]["local_ratio"] == pytest.approx(1 / 3)
    # Sixteen ids out, and back the log-probabilities of the ten that are scored: 2 bytes each.
    assert rows["domain", "iid"]["bytes_per_sample"] == pytest.approx(2 / 3 * 2 * (16 + 10))


def test_rates_are_chosen_on_validation_text(whole: Any) -> None:
    results, _, lines = whole
    averaged = [name for name in CONTROLS.split(",") if name.startswith("fedavg")]
    assert results["learning_rates"].keys() == set(averaged)
    assert set(results["learning_rates"].values()) <= {0.01, 0.03}
    asked = {line["stage"] for line in lines}
    assert {f"{name}@{rate}/validation" for name in averaged for rate in (0.01, 0.03)} <= asked


def test_the_exchanges_are_as_many_as_were_foretold(whole: Any) -> None:
    _, run, lines = whole
    counted: dict[str, int] = {}
    for line in lines:
        counted[line["stage"]] = counted.get(line["stage"], 0) + 1
    foretold = exchanges(run.config)
    assert foretold.pop("identity") == 1
    assert counted == foretold


def test_experts_can_begin_as_the_averaged_adapter(texts: Path, tmp_path: Path) -> None:
    """At a rate of nothing they stay what they begin as; its rounds come first, and are paid."""
    average = "fedavg-frozen-a"
    config = settings(
        texts, adapter__start=average, adapter__averaged_steps=15, adapter__steps=4,
        adapter__controls=f"{average},frozen", adapter__learning_rates="1e-12,1e-11",
        adapter__averaged_learning_rates="0.03", gate__methods="unigram,domain",
    )  # fmt: skip

    def trained(record: Mapping[str, Any]) -> bool:
        return bool(record["stage"] == "experts")

    with pytest.raises(Interrupted):
        carried_out(config, tmp_path / "killed", stop=trained)
    results, run, lines = carried_out(config, tmp_path / "killed")
    assert average not in {line["stage"] for line in lines}
    shared = run.artifacts.shared_adapters[average]
    assert shared.keys() == {name for name in shared if not name.endswith(".A")}
    for client in range(3):
        expert = records.part_of(run.artifacts.adapters, f"{client}/")
        for name, part in shared.items():
            assert np.abs(part).max() > 1e-3
            assert expert[name] == pytest.approx(part, abs=1e-9)
    rows = by_gate(results)
    for test in ("local", "iid"):
        wanted = rows[f"control:{average}", test]["bits_per_byte"]
        for gate in ("unigram", "domain"):
            assert rows[gate, test]["bits_per_byte"] == pytest.approx(wanted, rel=1e-6)
    assert cost_of(results, config, average, None).exchanges == 3
    assert cost_of(results, config, "unigram", None).exchanges == 3 + 1
    foretold = exchanges(config)
    assert (foretold[average], foretold["experts"], foretold["initial"]) == (3, 1, 1)


class _OtherTokens:
    """The app, where client 1 says that it makes other tokens; notes what is asked."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __call__(self, message: Any, context: Any) -> Any:
        self.asked.add(message.metadata.message_type)
        answer = app(message, context)
        told = answer.content.config_records.get("config", {})
        if TextKey.TOKENIZER in told and int(context.node_config["partition-id"]) == 1:
            told[TextKey.TOKENIZER] = "00" * 32
        return answer


@pytest.mark.parametrize("start", ["fresh", "fedavg"])
def test_clients_that_make_other_tokens_are_refused_before_they_train(
    start: str, texts: Path, tmp_path: Path
) -> None:
    other = _OtherTokens()
    with pytest.raises(RoundError, match="the tokenizer of all clients must be the same: client 1"):
        carried_out(settings(texts, adapter__start=start), tmp_path / "run", client_app=other)
    assert other.asked == {Action.IDENTITY, Action.DESCRIBE}


def test_a_run_goes_on_only_with_the_tokens_it_began_with(texts: Path, tmp_path: Path) -> None:
    def begun(record: Mapping[str, Any]) -> bool:
        return bool(record["stage"] == "fedavg" and record["round"] == 2)

    config = settings(texts, run__checkpoint_every=1)
    with pytest.raises(Interrupted):
        carried_out(config, tmp_path / "run", stop=begun)
    with pytest.raises(CheckpointError, match="client 1 makes other tokens of text than when"):
        carried_out(config, tmp_path / "run", client_app=_OtherTokens())


def test_adapters_and_nothing_else_travel(whole: Any) -> None:
    """0.4 MB of an adapter, never the backbone."""
    _, run, lines = whole
    adapter = sum(v.size for n, v in run.artifacts.adapters.items() if n.startswith("0/"))
    backbone = 257 * 16 + 16 * 16 + 2 * 12 * 16**2
    up = next(line["bytes_up"] for line in lines if line["stage"] == "experts")
    assert up < 3 * (4 * adapter + 2 * 257 + 3000)  # the headers of twenty arrays
    assert adapter < backbone
    names = run.artifacts.weights().keys()
    assert {"adapter-0", "adapter-1", "adapter-2", "adapter-fedavg"} <= names


def test_a_killed_run_ends_as_if_it_had_not_been(texts: Path, tmp_path: Path) -> None:
    config = settings(texts, run__checkpoint_every=1)
    wanted, run, _ = carried_out(config, tmp_path / "whole")

    def second(record: Mapping[str, Any]) -> bool:
        return bool(record["stage"] == "fedavg" and record["round"] == 2)

    with pytest.raises(Interrupted):
        carried_out(config, tmp_path / "killed", stop=second)
    found, resumed, lines = carried_out(config, tmp_path / "killed")
    assert (lines[0]["stage"], lines[0]["round"]) == ("fedavg", 2)
    assert "experts" not in {line["stage"] for line in lines}
    assert found["rows"] == wanted["rows"]
    for name, value in run.artifacts.named().items():
        assert np.array_equal(value, resumed.artifacts.named()[name]), name


@pytest.mark.parametrize(
    ("stage", "time", "first"),
    [
        ("fedavg@0.01", 2, "fedavg@0.01"),
        ("fedavg@0.01/validation", 1, "fedavg@0.01/validation"),
        ("initial", 2, "initial"),
        ("fedavg@0.03", 2, "fedavg@0.03"),
    ],
)
def test_a_run_killed_among_several_rates_repeats_none_that_is_finished(
    stage: str, time: int, first: str, texts: Path, tmp_path: Path
) -> None:
    """Results, adapters and bytes are those of a run that was not killed."""
    config = settings(
        texts, run__checkpoint_every=1, adapter__averaged_learning_rates="0.01,0.03",
        gate__methods="domain",
    )  # fmt: skip
    wanted, run, straight = carried_out(config, tmp_path / "whole")
    seen: list[Any] = []

    def killed(record: Mapping[str, Any]) -> bool:
        seen.append(record["stage"])
        return seen.count(stage) == time

    with pytest.raises(Interrupted):
        carried_out(config, tmp_path / "killed", stop=killed)
    found, resumed, lines = carried_out(config, tmp_path / "killed")
    assert lines[0]["stage"] == first
    assert len(seen) - 1 + len(lines) == len(straight)
    assert found["rows"] == wanted["rows"]
    assert found["learning_rates"] == wanted["learning_rates"]
    for told in ("rounds", "bytes_up", "bytes_down"):
        before = {name: cost[told] for name, cost in wanted["stages"].items()}
        assert {name: cost[told] for name, cost in found["stages"].items()} == before
    assert resumed.artifacts.named().keys() == run.artifacts.named().keys()
    for name, value in run.artifacts.named().items():
        assert np.array_equal(value, resumed.artifacts.named()[name]), name


def test_a_device_that_stops_at_its_second_rate_does_not_repeat_the_first(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"adapter__steps": 2, "adapter__controls": "frozen", "gate__methods": "domain,local"}
    config = settings(texts, adapter__learning_rates="0.01,0.03", **common)
    wanted, run, _ = carried_out(config, tmp_path / "whole")
    steps, asked = language.train_adapter, []

    def once(own: Any, rate: float, count: int) -> float:
        asked.append((own.device.partition, rate))
        if asked.count((1, 0.03)) == 1 and asked[-1] == (1, 0.03):
            raise RuntimeError("out of memory")  # the device is asked once more
        return steps(own, rate, count)

    monkeypatch.setattr(language, "train_adapter", once)
    found, again, _ = carried_out(config, tmp_path / "stopped")
    assert asked.count((1, 0.01)) == 1
    assert asked.count((1, 0.03)) == 2
    assert found["rows"] == wanted["rows"]
    for name, value in run.artifacts.adapters.items():
        assert np.array_equal(value, again.artifacts.adapters[name]), name
    assert not list((tmp_path / "stopped").rglob("tried-*"))


def test_an_adapter_trained_in_another_way_is_not_taken_for_this_one(tmp_path: Path) -> None:
    device: Any = SimpleNamespace(store=Store(tmp_path))
    kept = language._Tried(1.5, 2.5, {"layer.A": np.ones((1, 2), np.float32)})
    kept.keep(device, "tried-0.01", "ab" * 32)
    found = language._tried(device, "tried-0.01", "ab" * 32)
    assert found is not None
    assert (found.worth, found.loss, list(found.adapter)) == (1.5, 2.5, ["layer.A"])
    assert language._tried(device, "tried-0.01", "cd" * 32) is None


def at_home(texts: Path, names: str = "") -> Any:
    """An app whose devices have a folder of their own each."""

    def answer(message: Any, context: Any) -> Any:
        own = sorted(WORDS)[int(context.node_config["partition-id"])]
        context.node_config["data-path"] = str(texts / own)
        if names:
            context.node_config["classes"] = names
        return app(message, context)

    return answer


def test_devices_with_a_folder_of_their_own_do_as_those_that_share_one(
    texts: Path, tmp_path: Path
) -> None:
    """Whose text it is names its domain; nobody opens anybody else's."""
    names = ",".join(sorted(WORDS))
    config = settings(texts, data__dataset="nowhere", gate__methods="unigram,lda,domain,local",
                      adapter__controls="frozen")  # fmt: skip
    results, _, _ = carried_out(config, tmp_path / "own", client_app=at_home(texts, names))
    rows = by_gate(results)
    assert results["partition"]["classes"] == sorted(WORDS)
    assert np.count_nonzero(results["partition"]["train"]) == 3
    for gate in ("unigram", "lda"):
        told = rows["domain", "iid"]["bits_per_byte"]
        assert rows[gate, "iid"]["bits_per_byte"] == pytest.approx(told, rel=0.1)
        assert rows[gate, "iid"]["bits_per_byte"] < rows["local", "iid"]["bits_per_byte"]
    with pytest.raises(RoundError, match=r"classes = a,b: with data-path .* each of 3 clients"):
        carried_out(config, tmp_path / "odd", client_app=at_home(texts, "a,b"))


def test_devices_of_several_ranks_and_experts_that_stay_at_home(
    texts: Path, tmp_path: Path
) -> None:
    config = settings(texts, adapter__ranks="1,2,3", adapter__controls="soup,uniform")
    results, run, _ = carried_out(config, tmp_path / "ranks")
    ranks = [len(run.artifacts.adapters[f"{client}/blocks.0.qkv.A"]) for client in range(3)]
    assert ranks == [1, 2, 3]
    assert ("control:soup", "iid") in by_gate(results)
    alone = settings(
        texts, expert__sharing="none", gate__methods="local", adapter__controls="soup,uniform"
    )
    results, run, _ = carried_out(alone, tmp_path / "alone")
    assert run.artifacts.adapters == {}
    # an expert at home has seen nobody else's text, and says nothing of it
    assert by_gate(results).keys() == {("local", t) for t in ("local", "validation")}
    assert results["routing"].keys() == {"local/local", "local/validation"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter__ranks": "1,2"}, "adapter.ranks has 2 entries for 3 clients"),
        ({"expert__sharing": "latents"}, "expert.sharing = latents is not for run.system"),
        (
            {"gate__methods": "random"},
            "none of them routes text; allowed: federated, local, prototype, lda, domain, oracle",
        ),
        (
            {"data__scheme": "dominant", "gate__methods": "unigram"},
            "data.scheme = dominant looks at classes, and the text",
        ),
        ({"expert__kind": "ffn", "adapter__targets": "up"}, "stands beside the feed-forward part"),
        (
            {"expert__kind": "ffn", "adapter__controls": "fedavg-exact"},
            "has a curve between them",
        ),
        ({"data__kind": "images"}, "run.system = language and data.kind = text need each other"),
        (
            {"extractor__backbone": "resnet18", "extractor__widths": ""},
            "needs a backbone that reads",
        ),
        (
            {"privacy__tokens": True, "gate__methods": "likelihood"},
            r"privacy.tokens covers the histograms .* gate.methods = likelihood",
        ),
        (
            {"text__candidates": 2, "gate__methods": "likelihood"},
            "text.candidates = 2 takes the best of a gate unigram",
        ),
        ({"privacy__enabled": True}, "covers the sums of hidden states .* got gate.methods = uni"),
        (
            {"gate__methods": "federated-chunks", "data__validation_per_client": 0},
            "federated-chunks is trained on validation text",
        ),
        ({"gate__methods": "federated", "gate__hidden": 4}, "gate.hidden = 4 is not for run.sys"),
        ({"privacy__tokens": True, "privacy__adjacency": "add-remove"}, "use replace-one with"),
        (
            {"adapter__learning_rates": "0.1,0.2", "data__validation_per_client": 0},
            "is chosen on validation text",
        ),
    ],
)
def test_what_does_not_fit_is_refused(texts: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        settings(texts, **changes)


def test_experts_beside_the_feed_forward_part_take_the_same_road(
    texts: Path, tmp_path: Path
) -> None:
    controls = "frozen,soup,uniform,fedavg,fedavg-frozen-a,fedavg-large"
    config = settings(texts, expert__kind="ffn", adapter__controls=controls, adapter__bias=False)
    results, run, lines = carried_out(config, tmp_path / "ffn")
    parts = {f"blocks.{n}.down.{side}" for n in (0, 1) for side in "AB"}
    assert set(run.artifacts.adapters) == {
        f"{client}/{name}" for client in range(3) for name in (*parts, TextKey.BACKBONE)
    }
    (trained,) = (line for line in lines if line["stage"] == "experts")
    frequencies = 3 * 2 * 257
    assert trained["bytes_up"] < 3 * (4 * 2 * 16 * 4 + 32) + frequencies + 3 * 2048  # headers
    rows = by_gate(results)
    bits = {gate: rows[gate, "local"]["bits_per_byte"] for gate, _ in rows}
    assert bits["local"] < bits["control:frozen"]
    assert bits["control:fedavg"] < bits["control:frozen"]
    assert {f"control:{name}" for name in controls.split(",")} <= set(bits)

"""Published systems: their rounds, and then their tests."""

import logging
import math
from collections.abc import Mapping
from typing import Any, cast

from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.baselines import Baseline, has_clients_parts, of_client
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.config import Config
from nmoe_flower.pipeline.ask import gather, holdings, message
from nmoe_flower.pipeline.networked import hand_out_extractor
from nmoe_flower.pipeline.rounds import federate
from nmoe_flower.pipeline.rows import all_found, row
from nmoe_flower.pipeline.run import Run
from nmoe_flower.plurals import listed
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES, SERVER_ROUND, Action, BaselineKey, Score

__all__ = ["evaluate_baseline", "train_baseline"]

_log = logging.getLogger(__name__)
_STAGE = "baseline"
_Scored = tuple[str, str, str]  # who answered, the test and the score
_SCORES = (Score.ACCURACY, Score.BALANCED_ACCURACY, Score.MACRO_F1)


def train_baseline(run: Run) -> None:
    """All rounds of a published system. Leaves its shared arrays."""
    held = holdings(run)
    settings = run.config.baseline
    entry = BASELINES[run.config.run.system]
    system: Baseline = found(entry.system)
    initial = ArrayRecord()  # of no use to a resumed stage, which has arrays of its own
    if run.resumed is None or run.resumed.state["stage"] != _STAGE:
        if run.config.has_stage_1:
            hand_out_extractor(run, Action.BASELINE_TRUNK)
        node = min(run.partitions.values())
        fresh = gather(run, "initial", Action.BASELINE_INITIAL, RecordDict(), only=[node])[node]
        initial = records.of_kind(fresh, ArrayRecord)[ARRAYS]
    strategy = system.strategy(
        run.config,
        action=Action.BASELINE,
        evaluate_action=Action.BASELINE_TEST,
        fraction_train=settings.fraction_train,
        min_available_nodes=max(2, run.config.run.min_replies),
    )
    if entry.reads_labels:
        strategy.class_counts = {client: holding.train for client, holding in held.items()}
    trained = federate(
        run,
        _STAGE,
        strategy,
        initial,
        rounds=settings.rounds,
        test_every=settings.evaluate_every,
    )
    run.artifacts.mixture = records.to_numpy(trained)


def evaluate_baseline(run: Run) -> dict[str, Any]:
    """Test the system, and what stands beside it: the content of ``results.json``."""
    held = holdings(run)
    told = {BaselineKey.FINAL: True, SERVER_ROUND: run.config.baseline.rounds}
    mixture = run.artifacts.mixture
    content: RecordDict | dict[int, RecordDict] = message(mixture, told)
    if has_clients_parts(mixture):
        content = {
            client: message(of_client(mixture, client), told) for client in run.partitions.values()
        }
    tests = run.config.data.tests

    def check(answer: RecordDict) -> None:
        _answers(records.metrics_of(answer), tests)

    replies = gather(run, "evaluation", Action.BASELINE_TEST, content, check=check)
    answers = {
        client: _answers(records.metrics_of(reply), tests) for client, reply in replies.items()
    }
    whole, diverged = _finite(run.config, answers)
    measured = list(answers.values())
    rows = [
        row(
            run,
            extractor=run.config.run.system,
            gate=who,
            test=test,
            top_k=1,
            per_client={
                score.replace("-", "_"): [one[who, test, score] for one in measured]
                for score in _SCORES
            },
        )
        for who in whole
        for test in tests
    ]
    more = {"diverged": diverged} if diverged else {}
    return all_found(run, held, rows=rows, routing={}, **more)


def _finite(
    config: Config, answers: Mapping[int, Mapping[_Scored, float]]
) -> tuple[list[str], dict[str, str]]:
    """Who answered with finite numbers at every client; of the others it warns, and says why.

    A mean over those clients where all went well would flatter.
    """
    system: Baseline = found(BASELINES[config.run.system].system)
    whole, diverged = [], {}
    for who in dict.fromkeys(name for one in answers.values() for name, _, _ in one):
        spoilt = [
            client
            for client, one in answers.items()
            if any(name == who and not math.isfinite(score) for (name, _, _), score in one.items())
        ]
        if spoilt:
            why, rate = f"answers at {listed(spoilt)} is not finite", system.too_high(who)
            _log.warning("what %s %s, and has no row in the results: %s", who, why, rate)
            diverged[who] = f"what it {why}: {rate}"
        else:
            whole.append(who)
    return whole, diverged


def _answers(metrics: Mapping[str, Any], tests: Any) -> dict[_Scored, float]:
    """Every score by who answered, the test and the score."""
    named = [key.partition("/")[0] for key in metrics if key != NUM_EXAMPLES and "/" in key]
    return {
        (who, test, score): float(cast(float, metrics[f"{who}/{score}-{test}"]))
        for who in dict.fromkeys(named)
        for test in tests
        for score in _SCORES
    }

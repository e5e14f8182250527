"""The ServerApp, and the one function both engines run: ``execute``."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from nmoe_flower.config import Config
from nmoe_flower.engine import flower, uninterrupted
from nmoe_flower.errors import NMoEError, RoundError
from nmoe_flower.lock import locked
from nmoe_flower.pipeline import SECONDS_PER_EXCHANGE, Answered, Run, exchanges, run_pipeline
from nmoe_flower.plurals import how_many
from nmoe_flower.rehearsal import check_files, rehearse_apart
from nmoe_flower.results import RunFolder, placed, shadowed
from nmoe_flower.summary import draw, summary_lines

__all__ = ["CALLER_TELLS", "app", "check_start", "cost_in_words", "execute", "settle"]

app = ServerApp()

CALLER_TELLS = "NMOE_CALLER_TELLS"
"""The variable a caller sets to 1 if it shows the results and draws the figures itself."""
SETTLED_AFTER = 3.0
HINT = f"for ten clients: {flower.SIMULATE}"


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of ``flwr run``: the clients are as many as the nodes that connect."""
    started = time.monotonic()
    config = Config.parse(context.run_config)
    path = config.run.folder(context.run_id)
    with locked(path):
        folder = _folder(grid, path, config)
        flower.log(logging.INFO, "results go to %s", path)
        for note in (*shadowed(config), *folder.config.advice()):
            flower.log(logging.INFO, "note: %s", note)
        cost = cost_in_words(folder.config, simulated=flower.is_simulated(grid))
        flower.log(logging.INFO, "%s", cost)
        execute(grid, folder, on_round=_Teller(), at_exit=flower.at_exit)
        if os.environ.get(CALLER_TELLS) != "1":
            figures = draw(folder, lambda text: flower.log(logging.WARNING, "%s", text))
            for line in summary_lines(folder, figures, time.monotonic() - started):
                flower.log(logging.INFO, "%s", line)


def _folder(grid: Grid, path: Path, config: Config) -> RunFolder:
    """The run that stands in ``path``, or a new one for as many clients as there are.

    Raises:
        CheckpointError: It has other settings, and has trained with them.
        ConfigError: A setting cannot be; nothing is written then.
    """
    if (path / "config.toml").exists():
        folder = RunFolder.resume(path)
        trained = RunFolder.has_trained(path)
        if trained or folder.config == config:
            if trained:  # with as many clients as had connected
                clients = {"data.num-clients": folder.config.data.num_clients}
                folder.check_config(Config.parse({**config.flat(), **clients}))
            return folder
    config = settle(grid, config, tell=lambda text: flower.log(logging.INFO, text))
    for note in check_start(grid, config):
        flower.log(logging.INFO, "note: %s", note)
    return RunFolder.create(path, placed(config, path))  # a rerun may start elsewhere


def check_start(grid: Grid, config: Config) -> list[str]:
    """Refuse what cannot be, before any message: all of it where the clients run here.

    On a federation the images are the devices' own, and only the server's files can be looked at.

    Returns:
        What of the data goes to nobody, in words.

    Raises:
        ConfigError: The text names the key, its value and what is allowed.
    """
    if flower.is_simulated(grid):
        return rehearse_apart(config)
    check_files(config)
    return []


def cost_in_words(config: Config, *, simulated: bool) -> str:
    """How many exchanges a whole run needs, and how long they take on real SuperNodes.

    >>> config = Config.parse({"extractor.rounds": 8, "gate.methods": "local", "run.controls": ""})
    >>> cost_in_words(config, simulated=True)
    'a whole run is 22 exchanges'
    >>> cost_in_words(config, simulated=False)
    'a whole run is 22 exchanges; on SuperNodes each costs about 6 s: 2 minutes'
    """
    count = sum(exchanges(config).values())
    if simulated:
        return f"a whole run is {how_many(count, 'exchange')}"
    minutes = max(1, round(count * SECONDS_PER_EXCHANGE / 60))
    return (
        f"a whole run is {how_many(count, 'exchange')}; on SuperNodes each costs about "
        f"{SECONDS_PER_EXCHANGE:g} s: {how_many(minutes, 'minute')}"
    )


def settle(
    grid: Grid,
    config: Config,
    *,
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Config:
    """Wait for ``data.num-clients`` nodes, or for fewer that stay as they are; never in silence.

    Raises:
        RoundError: Fewer than two nodes within ``run.connect-timeout``.
        ConfigError: The configuration cannot run with as few clients.
    """
    wanted, started = config.data.num_clients, clock()
    count, since, told = 0, started, started - 2.0
    while True:
        now, present = clock(), len(list(grid.get_node_ids()))
        if present != count:
            count, since = present, now
        enough = count >= 2 and not config.run.wait_for_all
        if count >= wanted or (enough and now - since >= SETTLED_AFTER):
            break
        if now - started >= config.run.connect_timeout:
            raise RoundError(
                f"{how_many(count, 'node')} connected within {config.run.connect_timeout:g} s, "
                f"data.num-clients is {wanted}, "
                f"{'all' if config.run.wait_for_all else 'at least 2'} are needed; {HINT}"
            )
        if now - told >= 2.0:
            tell(f"waiting for nodes: {count} of {wanted} connected")
            told = now
        sleep(0.1)
    if count == wanted:
        return config
    tell(
        f"{count} SuperNodes are connected but data.num-clients is {wanted}: "
        f"running with {how_many(count, 'client')}; {HINT}"
    )
    return Config.parse({**config.flat(), "data.num-clients": count})


def execute(
    grid: Grid,
    folder: RunFolder,
    *,
    on_round: Callable[[Mapping[str, Any]], None] = lambda _: None,
    on_answer: Answered = lambda stage, count, clients: None,
    at_exit: Callable[[Callable[[], None]], None] = lambda save: None,
    until: str = "",
    soonest: float | None = None,
) -> None:
    """Run the pipeline from where the folder's checkpoints left it, and write its results.

    Args:
        grid: Any Flower grid with ``data.num-clients`` nodes.
        folder: A created or resumed run folder.
        on_round: Called with every record as it is written.
        on_answer: Called with a stage that waits for each client, how many have answered, and of
            how many.
        at_exit: Takes the function that saves the last finished round, for a process that may be
            ended without unwinding this call. Whatever unwinds it, Ctrl-C included, saves too.
        until: Name of the stage to stop after: there are a checkpoint and no results then; empty:
            the whole run.
        soonest: Seconds between two checkpoints at least; None: as usual.

    Raises:
        RoundError: The run cannot go on.
    """

    def journal(record: Mapping[str, Any]) -> None:
        folder.append_round(record)
        on_round(record)

    run = Run(
        grid,
        folder.config,
        journal,
        answered=on_answer,
        keep=folder.keep,
        checkpoints=folder.checkpoints,
    )
    if soonest is not None:
        run.soonest = soonest
    checkpoint = folder.checkpoints.latest()
    if checkpoint is not None:
        folder.check_settings(checkpoint.state.get("settings", {}))
        run.restore(checkpoint)
    kept = iter(range(run.written))
    folder.truncate_rounds(lambda _: next(kept, None) is not None)
    at_exit(run.save_noted)
    try:
        results = run_pipeline(run, until=until)
    except BaseException:
        with uninterrupted():
            _save_noted(run)
        raise
    if results is None:
        return
    for name, arrays in run.artifacts.weights().items():
        folder.save_weights(name, arrays)
    told = {"data": results.pop("fingerprint"), "precision": results.pop("precision")}
    folder.set_provenance(**told)
    folder.write_results(results)


def _save_noted(run: Run) -> None:
    """A disk that refuses must not hide why the run ended."""
    try:
        run.save_noted()
    except NMoEError as error:
        flower.log(logging.WARNING, "no checkpoint of the last round: %s", error)


class _Teller:
    """Log a line per stage, about one every two seconds, and every failure."""

    def __init__(self) -> None:
        self._stage, self._told = "", 0.0

    def __call__(self, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        for failure in record["failures"]:
            flower.log(
                logging.WARNING, "client %s dropped: %s", failure["partition"], failure["reason"]
            )
        last = record["round"] == record["rounds"]
        if record["stage"] == self._stage and not last and now - self._told < 2.0:
            return
        self._stage, self._told = record["stage"], now
        metrics = ", ".join(
            f"{name} {value:.4f}"
            for name, value in islice(record["metrics"].items(), 4)
            if isinstance(value, int | float)
        )
        flower.log(
            logging.INFO,
            "%s %d/%d  %s  %.2f s",
            record["stage"],
            record["round"],
            record["rounds"],
            metrics,
            record["seconds"],
        )

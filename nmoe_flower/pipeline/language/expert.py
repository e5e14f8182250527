"""Every client trains an adapter at home; what leaves is what its sharing allows."""

import numpy as np
from flwr.app import ArrayRecord

from nmoe_flower import records
from nmoe_flower.pipeline.accounts import account
from nmoe_flower.pipeline.ask import alike, gather, holdings, message
from nmoe_flower.pipeline.language.control import averaged_adapter
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import EXPERT, GATE, Action, TextKey

__all__ = ["train_adapters"]


def train_adapters(run: Run) -> None:
    """One exchange: leaves the experts' adapters, where they may leave their devices.

    Where `adapter.start` names an averaged adapter, that is trained before. Clients that bring an
    expert along from another run are not asked.

    Raises:
        RoundError: Clients have other backbones than most or make other tokens of text, or one did
            not train.
    """
    held = holdings(run)  # clients that cannot train together are refused before they do
    shares = run.config.expert.sharing == "weights"
    wanted = [GATE] if run.config.gate.asks_frequencies and shares else []
    wanted += [EXPERT] if shares else []
    carried = set() if run.artifacts.carried is None else set(run.artifacts.carried.tolist())
    asked = sorted(set(run.partitions.values()) - carried)
    if not asked:
        return
    start = run.config.adapter.start
    question = message(None if start == "fresh" else averaged_adapter(run, start))
    trained = gather(run, "experts", Action.ADAPTER_EXPERT, question, only=asked, wanted=wanted)
    if not shares:
        return
    if GATE in wanted:
        counted = {
            client: records.to_numpy(records.of_kind(content, ArrayRecord)[GATE])
            for client, content in trained.items()
        }
        found = alike("experts", counted).values()
        rows = np.stack([arrays[TextKey.FREQUENCIES] for arrays in found])
        before = run.artifacts.frequencies
        run.artifacts.frequencies = rows if before is None else _put(before, asked, rows)
        if run.config.privacy.tokens:
            windows = {c: sum(told.train) for c, told in held.items() if c in asked}
            account(run, "histograms", windows)
    told = {
        client: records.to_numpy(records.of_kind(content, ArrayRecord)[EXPERT])
        for client, content in trained.items()
    }
    if not run.config.adapter.ranks:
        told = alike("experts", told)
    run.artifacts.adapters |= {
        f"{client}/{name}": value
        for client, arrays in told.items()
        for name, value in arrays.items()
    }
    run.artifacts.adapters = dict(
        sorted(run.artifacts.adapters.items(), key=lambda one: int(one[0].partition("/")[0]))
    )


def _put(all_rows: np.ndarray, clients: list[int], rows: np.ndarray) -> np.ndarray:
    """A copy of everybody's rows with those of some clients put in."""
    found = all_rows.astype(rows.dtype)
    found[clients] = rows
    return found

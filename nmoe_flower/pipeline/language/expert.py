"""Every client trains an adapter at home; what leaves is what its sharing allows."""

import numpy as np
from flwr.app import RecordDict

from nmoe_flower import records
from nmoe_flower.pipeline.accounts import account
from nmoe_flower.pipeline.ask import alike, gather, holdings
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import EXPERT, GATE, Action, TextKey

__all__ = ["train_adapters"]


def train_adapters(run: Run) -> None:
    """One exchange: leaves the experts' adapters, where they may leave their devices.

    Raises:
        RoundError: Clients have other backbones than most, or one did not train.
    """
    shares = run.config.expert.sharing == "weights"
    wanted = [GATE] if run.config.gate.asks_frequencies and shares else []
    wanted += [EXPERT] if shares else []
    trained = gather(run, "experts", Action.ADAPTER_EXPERT, RecordDict(), wanted=wanted)
    if not shares:
        return
    if GATE in wanted:
        counted = {
            client: records.to_numpy(content.array_records[GATE])
            for client, content in trained.items()
        }
        found = alike("experts", counted).values()
        run.artifacts.frequencies = np.stack([arrays[TextKey.FREQUENCIES] for arrays in found])
        if run.config.privacy.tokens:
            windows = {c: sum(told.train) for c, told in holdings(run).items()}
            account(run, "histograms", windows)
    told = {
        client: records.to_numpy(content.array_records[EXPERT])
        for client, content in trained.items()
    }
    if not run.config.adapter.ranks:
        told = alike("experts", told)
    run.artifacts.adapters = {
        f"{client}/{name}": value
        for client, arrays in told.items()
        for name, value in arrays.items()
    }

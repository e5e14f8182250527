"""What single releases have cost each client: the server's account, for the results."""

from collections.abc import Mapping

from nmoe_flower.pipeline.run import Run
from nmoe_flower.privacy import Accountant, Budget, Released, noise_multiplier_for

__all__ = ["account"]


def account(run: Run, what: Released, counts: Mapping[int, int]) -> None:
    """Count one release of each client, in a new account; states of text go beside histograms.

    Args:
        run: The run in progress; its account is left among the artifacts.
        what: What was released.
        counts: Samples of each client, by partition id.
    """
    settings = run.config.privacy
    noise = noise_multiplier_for(settings.epsilon, settings.delta, settings.single_releases)
    accountant = Accountant(Budget(settings.epsilon, settings.delta))
    if what == "states" and run.artifacts.accountant is not None:
        accountant.load_state(run.artifacts.accountant)
        what = "histograms and states"
    accountant.released = what
    for client, count in counts.items():
        accountant.spend(client, noise_multiplier=noise, num_examples=count)
    run.artifacts.accountant = accountant.state()

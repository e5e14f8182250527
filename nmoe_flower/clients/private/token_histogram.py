"""How a client's histogram of tokens leaves it: once, with noise and paid for where that is set."""

import numpy as np
import numpy.typing as npt

from nmoe_flower.clients.device import Device
from nmoe_flower.clients.private.ledger import OF_HISTOGRAM, Ledger
from nmoe_flower.models import UNSEEN, token_frequencies
from nmoe_flower.privacy import Budget, HistogramMechanism, noise_multiplier_for
from nmoe_flower.records import TextKey
from nmoe_flower.seeds import numpy_stream

__all__ = ["told_frequencies"]

_FILE = "token-histogram"


def told_frequencies(
    device: Device, windows: npt.NDArray[np.integer], vocab_size: int
) -> npt.NDArray[np.float16]:
    """Log-probability of each token in a client's training text, float16 [V].

    With ``privacy.tokens`` the unit of protection is a window, and what was told before is told
    again: the same bits cost nothing.

    Args:
        device: The client.
        windows: Tokens of its training windows, [N, T].
        vocab_size: Number of tokens, V.

    Raises:
        BudgetError: The budget is spent.
        CheckpointError: The ledger cannot be read.
        ConfigError: ``privacy.delta`` is not below 1 / windows.
    """
    privacy = device.config.privacy
    if not privacy.tokens:
        return token_frequencies(np.bincount(windows.ravel(), minlength=vocab_size))
    if device.store.has(_FILE):
        return np.asarray(device.store.load(_FILE)[TextKey.FREQUENCIES], np.float16)
    multiplier = noise_multiplier_for(
        privacy.epsilon, privacy.delta, privacy.single_releases, num_examples=len(windows)
    )
    mechanism = HistogramMechanism(
        multiplier, privacy.tokens_clip, adjacency=privacy.adjacency, secure=privacy.secure
    )
    counts = mechanism.count(windows, vocab_size)
    budget = Budget(privacy.epsilon, privacy.delta)
    ledger = Ledger(device.store.folder, device.partition, budget)
    ledger.spend(multiplier, num_examples=len(windows), server_round=OF_HISTOGRAM)
    rng = None if privacy.secure else numpy_stream(device.seed("histogram"), "noise")
    noisy = mechanism.release(counts, rng)
    # a count of nothing is noise of this size, and must not look like never
    found = token_frequencies(noisy, UNSEEN + mechanism.noise_std)
    device.store.save(_FILE, {TextKey.FREQUENCIES: found}, sync=True)
    return found

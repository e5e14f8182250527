"""Whether data can be dealt out as runs ask: told before the first of them begins."""

import json
from contextlib import suppress

from nmoe_flower.config import Config
from nmoe_flower.errors import DataError
from nmoe_flower.own_code import is_own

__all__ = ["Dealt"]


class Dealt:
    """Deals out the data of runs, of those that ask alike once; nobody takes them."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def refusal(self, config: Config) -> str:
        """Why the data cannot be dealt out as a run asks, in words; empty: they can.

        Also empty where it takes long to find out, or somebody else's code: of data that are not
        in the cache, of domains, and of text. A run that begins says it then.

        Args:
            config: The run's configuration.
        """
        asked = json.dumps([config.data.model_dump(mode="json"), config.run.seed])
        if asked not in self._known:
            self._known[asked] = _refusal(config)
        return self._known[asked]


def _refusal(config: Config) -> str:
    from nmoe_flower.data import known_fingerprint
    from nmoe_flower.progress import make_progress
    from nmoe_flower.running_data import open_data

    section = config.data
    if is_own(section.scheme) or is_own(section.dataset) or not known_fingerprint(config):
        return ""
    try:
        with suppress(OSError):
            open_data(config, make_progress(None))
    except DataError as error:
        return str(error)
    return ""

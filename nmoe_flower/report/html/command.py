"""The command line that runs a configuration again."""

import shlex

from nmoe_flower.config import Config
from nmoe_flower.files import to_toml
from nmoe_flower.results import FREE_KEYS

__all__ = ["command_of"]

_WIDTH = 84
_ELSEWHERE = FREE_KEYS - {"run.name"}  # where it runs and how long it waits is the reader's choice


def command_of(config: Config) -> str:
    """``nmoe run`` with every setting that differs from its default.

    >>> print(command_of(Config.parse({"data.tau": 0.2, "run.seed": 3, "run.name": "a-b"})))
    nmoe run --name a-b --seed 3 --set data.tau=0.2
    """
    plain = Config.parse({}).model_dump(by_alias=True, mode="json")
    words = ["nmoe run"]
    if config.run.name != plain["run"]["name"]:
        words.append(f"--name {shlex.quote(config.run.name)}")
    words.append(f"--seed {config.run.seed}")
    changed = [
        _pair(f"{section}.{key}", value)
        for section, values in config.model_dump(by_alias=True, mode="json").items()
        for key, value in values.items()
        if value != plain[section][key] and f"{section}.{key}" not in _ELSEWHERE
        and (section, key) not in {("run", "name"), ("run", "seed")}
    ]  # fmt: skip
    if changed:
        changed[0] = f"--set {changed[0]}"
    return _wrapped([*words, *changed])


def _pair(key: str, value: object) -> str:
    """``key=value`` as ``--set`` reads it; quoted for a shell where that is needed."""
    if isinstance(value, str):
        plain = value.isprintable() and value == value.strip() and not value.startswith(("'", '"'))
        return shlex.quote(f"{key}={value if plain else _toml(value)}")
    if isinstance(value, list):
        return shlex.quote(f"{key}={','.join(map(str, value))}")
    return f"{key}={_toml(value)}"


def _toml(value: object) -> str:
    return to_toml({"value": value}).partition("=")[2].strip()


def _wrapped(words: list[str]) -> str:
    """Lines that end with a backslash where they go on."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > _WIDTH:
            lines[-1] += " \\"
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)

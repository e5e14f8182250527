"""The whole way on one machine: train over TLS, stop the server, serve, ask, take all down."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nmoe_flower.data import configured_images
from nmoe_flower.deploy.checks import check_folder
from nmoe_flower.deploy.federation import LocalFederation, local_plan
from nmoe_flower.deploy.folder import FederationPlan, for_deployment
from nmoe_flower.deploy.sandbox import Sandbox
from nmoe_flower.engine import interruptible
from nmoe_flower.errors import ConfigError, EngineError
from nmoe_flower.pipeline import exchanges
from nmoe_flower.plurals import how_many

__all__ = ["demonstrate"]

_IMAGES = 6


def demonstrate(
    plan: FederationPlan,
    *,
    say: Callable[[str], None] = print,
    folder: Path | None = None,
    wheel: Path | None = None,
) -> list[dict[str, Any]]:
    """Play a federation over loopback, with TLS, node keys and certificates of its own.

    Args:
        plan: The federation to play; free ports of the loopback take the place of its addresses.
        say: Called with each line of progress.
        folder: Where it plays; kept with everything in it. None: a temporary folder, removed at the
            end.
        wheel: The wheel of this package to install; None: made of what runs here.

    Returns:
        The answers to six test images, as ``nmoe infer`` prints them, with their true ``label``.

    Raises:
        EngineError: A step failed or took too long; its log is in the text.
        ConfigError: ``folder`` is not empty, the plan cannot be, or its data are no images.
    """
    if plan.config.data.kind != "images":
        raise ConfigError(
            f"data.kind = {plan.config.data.kind}: the demonstration asks about images; allowed: a "
            "recipe with data.kind = images"
        )
    plan = local_plan(replace(plan, config=for_deployment(plan.config, len(plan.peers))))
    with interruptible(), Sandbox(folder) as sandbox:
        federation = LocalFederation(sandbox, plan)
        federation.write(wheel=wheel)
        say(f"wrote the folders of {len(plan.peers)} nodes to {sandbox.folder}")
        _check(sandbox.folder, say)
        federation.start_superlink()
        say(f"SuperLink at {plan.server} over TLS; {len(plan.peers)} node keys let in")
        federation.start_nodes()
        count = sum(exchanges(plan.config).values())
        say(f"training: {how_many(count, 'exchange')}, some seconds each")
        federation.train(on_tick=_Follower(federation.run_folder / "rounds.jsonl", count, say))
        sandbox.clear()
        say("training is over; the SuperLink and the SuperNodes are stopped")
        federation.start_peers()
        say(f"{len(plan.peers)} peers serve their experts")
        answers = _ask(federation)
        for answer in answers:
            say(
                f"{answer['image']}: class {answer['class']} (true: {answer['label']}), "
                f"answered by {', '.join(answer['peers'])} in {answer['ms']:.0f} ms"
            )
    say("everything is taken down" + (f"; kept: {folder}" if folder else ""))
    return answers


def _check(folder: Path, say: Callable[[str], None]) -> None:
    findings = check_folder(folder)
    problems = [f"{f.party}: {f.what}: {f.problem}" for f in findings if f.problem]
    if problems:
        raise EngineError("the check before the start failed:\n" + "\n".join(problems))
    say(f"checked {how_many(len(findings), 'thing')}: no problem")


def _ask(federation: LocalFederation) -> list[dict[str, Any]]:
    data = configured_images(federation.plan.config)
    images = federation.sandbox.folder / "images.npy"
    np.save(images, np.asarray(data.test.images[:_IMAGES]))
    answers = [json.loads(line) for line in federation.ask(images)]
    if len(answers) != _IMAGES or not all("class" in answer for answer in answers):
        raise EngineError(f"{_IMAGES} images were asked about; the answers: {answers}")
    labels = data.test.labels[:_IMAGES]
    return [
        {**answer, "label": data.class_names[label]}
        for answer, label in zip(answers, labels, strict=True)
    ]


class _Follower:
    """Tells each new line of ``rounds.jsonl``."""

    def __init__(self, path: Path, count: int, say: Callable[[str], None]) -> None:
        self._path, self._count, self._say = path, count, say
        self._told = 0

    def __call__(self) -> None:
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        for line in lines[self._told :]:
            self._told += 1
            record = json.loads(line)
            dropped = "".join(
                f"; client {f['partition']} dropped: {f['reason']}" for f in record["failures"]
            )
            self._say(
                f"  {self._told + 1}/{self._count}  {record['stage']} "
                f"{record['round']}/{record['rounds']}  {record['seconds']:.1f} s{dropped}"
            )

"""Run what is missing of a study: several processes, one for each run, and what they tell."""

import json
import queue
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import IO, Any, NamedTuple

from nmoe_flower.errors import LockedError
from nmoe_flower.lock import locked
from nmoe_flower.machine import usable_cores
from nmoe_flower.progress import duration
from nmoe_flower.study.hosts import STOPPED, ClusterHosts, Host, Hosts, LocalHosts
from nmoe_flower.study.one import StudyTask, note_failure, track_of
from nmoe_flower.study.plan import FAILED, OF_STAGE_1, REST, PlannedRun, StudyPlan
from nmoe_flower.study.share import STAGE_1, is_ready

__all__ = ["AtWork", "StudyOutcome", "StudyView", "run_study", "seconds_left"]

PROGRAM = [sys.executable, "-m", "nmoe_flower.study.program"]
"""What makes one run, in a process of its own."""

_TICK = 0.5  # seconds between two looks at the clock
_RECENT = 6  # finished runs that say how long the others will take
_PATIENCE = 60.0  # seconds for a run to save its last round
_MOST_LOSSES = 3  # of machines under one run
_TELLING = 0.03  # of the rounds of a stage say how fast it goes


@dataclass
class StudyOutcome:
    """How a study ended.

    Attributes:
        finished: Runs that were there, and those that were made now.
        made: Runs that were made now.
        failed: Reasons by run.
        left: Runs that were not tried, because the disk is full or somebody stopped the study.
        interrupted: Somebody stopped it.
    """

    finished: int = 0
    made: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0
    interrupted: bool = False


class StudyView:
    """What a study tells while it runs, as plain lines or as JSON, one object a line."""

    def __init__(
        self,
        *,
        json_lines: bool = False,
        stream: IO[str] | None = None,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Tell on ``stream`` (standard output); of a run at work, a line each ``every`` seconds."""
        self._json, self._stream, self._every, self._clock = json_lines, stream, every, clock
        self._told = clock()

    def say(self, text: str, **values: Any) -> None:
        """One line: the text, or the values behind it."""
        self._told = self._clock()
        print(json.dumps(values) if self._json else text, file=self._stream, flush=True)

    @property
    def is_due(self) -> bool:
        """Whether it is time for a word about runs at work."""
        return self._clock() - self._told >= self._every


class AtWork(NamedTuple):
    """The time of a run at work, in seconds.

    Attributes:
        expected: What was expected of it.
        spent: What it has taken so far.
        pace: How many times as long as expected it takes; 0: nobody knows.
        rest: What its stage takes yet; 0: nobody knows.
    """

    expected: float
    spent: float
    pace: float = 0.0
    rest: float = 0.0


@dataclass
class _Child:
    """A run in its process.

    Attributes:
        number: Which of all that are to be made.
        planned: The run.
        host: The process.
        since: When it was started.
        shared: Seconds that stage 1 was expected to take; 0: another run makes it.
        stage: The stage whose rounds it tells; empty: none yet.
        first: The round of that stage that it told first.
        begun: When it began that round.
        until: When that stage is over, as its rounds tell; 0: unknown.
        pace: How much longer it takes than expected, as rounds tell; 0: unknown.
        at: What it is doing.
        failed: Why it failed, in its own words.
        hopeless: Others would fail for the same reason.
    """

    number: int
    planned: PlannedRun
    host: Host
    since: float
    shared: float
    stage: str = ""
    first: int = 0
    begun: float = 0.0
    until: float = 0.0
    pace: float = 0.0
    at: str = "starting"
    failed: str = ""
    hopeless: bool = False

    @property
    def name(self) -> str:
        return self.planned.run.name

    @property
    def expected(self) -> float:
        """Seconds it was expected to take."""
        return self.planned.seconds + self.shared

    @property
    def at_work(self) -> AtWork:
        """What tells how long it takes yet: of a last stage its own rounds are enough."""
        now, last = time.monotonic(), self.stage in REST and self.until
        rest = max(0.0, self.until - now)
        return AtWork(0.0 if last else self.expected, now - self.since, self.pace, rest)

    def follow(self, stage: str, current: int, rounds: int, seconds: float = 0.0) -> None:
        """Take in that a round is done, which took seconds: by and by they tell the pace."""
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.first, self.until = stage, current, 0.0
            self.begun = self.since if stage == STAGE_1 else now - seconds
        done, all_ = current - self.first + 1, rounds - self.first + 1
        if done < _TELLING * all_:
            return
        whole = (now - self.begun) * all_ / done
        self.until = self.begun + whole
        hoped = {STAGE_1: self.shared, **dict.fromkeys(REST, self.planned.seconds)}.get(stage)
        self.pace = whole / hoped if hoped else self.pace

    def reason(self) -> str:
        """Why it failed, in words."""
        if self.failed:
            return self.failed
        return self.host.reason()


def run_study(
    plan: StudyPlan,
    *,
    jobs: int = 1,
    workers: int | None = None,
    view: StudyView | None = None,
    track: Sequence[str] = (),
    ray_address: str | None = None,
) -> StudyOutcome:
    """Run what a plan says is missing; the rest of a study goes on when a run fails.

    Args:
        plan: The plan; the folders of its study, and of those it includes, are held meanwhile.
        jobs: Runs at a time, at least 1.
        workers: Client processes of each. None: the cores, shared by the runs.
        view: Where the study tells how it goes.
        track: Trackers of each run, names of `nmoe_flower.catalogue.TRACKERS`: the study is
            MLflow's experiment and the group in W&B; variant, axes and seed are tags.
        ray_address: A Ray cluster whose nodes make the runs, ``auto`` or ``HOST:PORT``; a run takes
            ``workers`` cores, 1 by default. A run whose node dies is made again on another, from
            its last saved round. All nodes must see the folders under the same paths.

    Raises:
        LockedError: Another process runs this study there.
        EngineError: There is no such cluster, or no node of it can make a run.
        NMoEError: The folder cannot be written.
    """
    view = view or StudyView()
    if workers is None:
        workers = 1 if ray_address else max(1, usable_cores() // jobs)
    try:
        with ExitStack() as held:
            for folder in sorted({plan.folder, *(one.path.parents[1] for one in plan.runs)}):
                held.enter_context(locked(folder, otherwise="another --out"))
            hosts = _hosts(plan, jobs, workers, view, ray_address)
            try:
                return _Shift(plan, hosts, workers, view, track).work()
            finally:
                hosts.close()
    except LockedError as error:
        raise LockedError(f"the study {plan.study.name} is being run already: {error}") from None


def _hosts(
    plan: StudyPlan, jobs: int, workers: int, view: StudyView, ray_address: str | None
) -> Hosts:
    waiting = [one.run.config.flat() for one in plan.runs if one.runs]
    if ray_address is None or not waiting:
        return LocalHosts(PROGRAM, jobs, threads=max(1, usable_cores() // jobs))

    def data_of(values: Mapping[str, Any]) -> str:
        named = {key: value for key, value in values.items() if key.startswith("data.")}
        return json.dumps(named, sort_keys=True)

    return ClusterHosts(
        ray_address,
        PROGRAM[1:],
        shared=plan.folder,
        checks=list({data_of(values): values for values in waiting}.values()),
        cores=workers,
        most=jobs,
        say=lambda text: view.say(text, note=text),
    )


class _Shift:
    """The runs of one call, and the processes that make them."""

    def __init__(
        self, plan: StudyPlan, hosts: Hosts, workers: int, view: StudyView, track: Sequence[str]
    ) -> None:
        self._plan, self._hosts, self._workers, self._view = plan, hosts, workers, view
        self._losses: Counter[str] = Counter()  # how often a run's machine was lost
        self._track = track
        self._stages = {stage.key: stage for stage in plan.stages}
        self._ready = {key for key, stage in self._stages.items() if stage.state == "finished"}
        self._waiting = [one for one in plan.runs if one.runs]
        self._total = len(self._waiting)
        self._children: list[_Child] = []
        self._idle: list[Host] = []
        self._lines: queue.SimpleQueue[tuple[Host, str]] = queue.SimpleQueue()  # heeds Ctrl-C
        self._outcome = StudyOutcome(finished=plan.count("finished"))
        self._paces: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # taken, and expected
        self._hopeless = False

    def work(self) -> StudyOutcome:
        """All of it; Ctrl-C lets every run save its last round."""
        from nmoe_flower.engine import interruptible, uninterrupted

        for one in self._plan.runs:
            if one.state in ("broken", "other"):
                self._failed(one, f"nothing was touched: {one.reason}")
            elif one.state == "refused":
                note_failure(one.path, one.reason)
                self._failed(one, one.reason)
        try:
            with interruptible():
                try:
                    while (self._waiting and not self._hopeless) or self._children:
                        self._start()
                        self._listen()
                finally:
                    with uninterrupted():
                        self._end()
        except (KeyboardInterrupt, SystemExit):
            self._outcome.interrupted = True
        return self._outcome

    # --- one turn ---

    def _start(self) -> None:
        """Start runs while there is room; one that waits for a stage 1 in the making is later."""
        while self._waiting and not self._hopeless:
            if len(self._children) >= max(1, self._hosts.room()):
                return
            busy = {child.planned.stage_1 for child in self._children} - self._ready - {""}
            planned = next((one for one in self._waiting if one.stage_1 not in busy), None)
            if planned is None:
                return
            self._waiting.remove(planned)
            child = self._begin(planned)
            self._tell(
                child, f"{planned.state}, starts" if planned.state != "missing" else "starts"
            )

    def _begin(self, planned: PlannedRun) -> _Child:
        stage = self._stages.get(planned.stage_1)
        task = StudyTask.of(
            planned.path,
            planned.run.config,
            stage_1=stage.path if stage else None,
            alone=False,
            workers=self._workers,
            track=track_of(self._plan.study.name, planned.run, self._track),
        )
        shared = stage.seconds if stage and planned.stage_1 not in self._ready else 0.0
        host = (
            self._idle.pop()
            if self._idle
            else self._hosts.start(lambda host, line: self._lines.put((host, line)))
        )
        number = self._total - len(self._waiting)
        child = _Child(number, planned, host, time.monotonic(), shared)
        self._children.append(child)
        host.give(task.to_line())
        return child

    def _listen(self) -> None:
        """Take what runs tell, until there is nothing for a moment."""
        with suppress(queue.Empty):
            self._take(*self._lines.get(timeout=_TICK))
            while True:
                self._take(*self._lines.get_nowait())
        if self._view.is_due:
            for child in self._children:
                self._tell(child, child.at)

    def _child_of(self, host: Host) -> _Child | None:
        return next((child for child in self._children if child.host is host), None)

    def _take(self, host: Host, line: str) -> None:
        child = self._child_of(host)
        if not line:
            self._gone(host)
        if not line or child is None:
            return
        told: dict[str, Any] = {}
        with suppress(ValueError):
            told = json.loads(line)
        if "stage" in told:
            current, rounds = int(told.get("round", 0)), int(told.get("rounds", 0))
            child.at = f"{told['stage']} {current}/{rounds}"
            if not told["stage"].endswith("-test"):
                child.follow(told["stage"], current, rounds, float(told.get("seconds", 0.0)))
        elif "failed" in told:
            child.failed, child.hopeless = str(told["failed"]), bool(told.get("hopeless"))
        elif "done" in told:
            self._idle.append(host)
            self._finished(child)
        elif str(told.get("message", "")).startswith("waiting for"):
            child.at = str(told["message"])
        elif str(told.get("message", "")).startswith("tracking: "):
            note = told["message"]
            self._view.say(f"{child.name}: {note}", run=child.name, note=note)
        stage = self._stages.get(child.planned.stage_1)
        if stage and stage.key not in self._ready and "message" in told and is_ready(stage.path):
            self._ready.add(stage.key)

    def _finished(self, child: _Child) -> None:
        self._children.remove(child)
        took = time.monotonic() - child.since
        self._outcome.finished += 1
        self._outcome.made += 1
        if child.expected:
            self._paces.append((took, child.expected))
        self._ready.add(child.planned.stage_1)
        self._tell(child, f"finished in {duration(took)}")

    def _gone(self, host: Host) -> None:
        """A process has ended: the run it made has failed, unless it ended well."""
        if host in self._idle:
            self._idle.remove(host)
        child = self._child_of(host)
        if child is not None and host.ended_well():
            self._finished(child)
        elif child is not None:
            self._children.remove(child)
            self._losses[child.name] += host.lost()
            if host.lost() and self._losses[child.name] <= _MOST_LOSSES:
                self._waiting.insert(0, child.planned)
                self._tell(child, f"again, as {host.reason()}")
            else:
                self._bury(child)
        host.end(0.0)

    def _bury(self, child: _Child) -> None:
        reason = child.reason()
        self._hopeless = self._hopeless or child.hopeless
        if not child.failed and reason != STOPPED:  # else it wrote it down itself, or goes on
            note_failure(child.planned.path, reason)
        self._failed(child.planned, reason)
        stage = self._stages.get(child.planned.stage_1)
        if self._hopeless:  # said once; the others are left as they are
            return
        if stage and stage.key not in self._ready and (stage.path / FAILED).exists():
            for other in [one for one in self._waiting if one.stage_1 == stage.key]:
                self._waiting.remove(other)
                self._failed(other, f"{OF_STAGE_1}{reason}")

    def _failed(self, planned: PlannedRun, reason: str) -> None:
        name = planned.run.name
        self._outcome.failed[name] = reason
        self._view.say(f"{name}: failed: {reason}", run=name, state="failed", reason=reason)

    # --- telling ---

    def _tell(self, child: _Child, what: str) -> None:
        left = self._seconds_left()
        about = f"; about {duration(left)} left" if left >= 1 else ""
        self._view.say(
            f"[{child.number}/{self._total}] {child.name}: {what}{about}",
            run=child.name, number=child.number, of=self._total, now=what,
            seconds_left=round(left),
        )  # fmt: skip

    def _seconds_left(self) -> float:
        """How long the rest takes, as the runs so far took longer or shorter than expected."""
        waiting = sum(one.seconds for one in self._waiting)
        asked = {one.stage_1 for one in self._waiting} - self._ready - {""}
        asked -= {child.planned.stage_1 for child in self._children}
        waiting += sum(self._stages[key].seconds for key in asked)
        running = [one.at_work for one in self._children]
        return seconds_left(waiting, running, list(self._paces), self._hosts.room())

    # --- the end ---

    def _end(self) -> None:
        """Let the runs at work save their last round, and end their processes."""
        hosts = [child.host for child in self._children] + self._idle
        for host in hosts:
            host.stop()
        deadline = time.monotonic() + _PATIENCE
        for host in hosts:
            host.end(max(0.0, deadline - time.monotonic()))
        self._outcome.left = len(self._waiting) + len(self._children)


def seconds_left(
    waiting: float,
    running: Sequence[AtWork],
    finished: Sequence[tuple[float, float]] = (),
    room: int = 1,
) -> float:
    """How long the rest takes, as others took longer or shorter than expected of them.

    How much longer is told by the runs that finished last, all together, by each at work whose
    rounds show it, and by one that has outlasted what was expected.

    Args:
        waiting: Seconds that are expected of what has not begun.
        running: The runs at work.
        finished: Seconds that the last runs took, and that were expected of each.
        room: Runs at a time.

    >>> seconds_left(60.0, [AtWork(30.0, 10.0)]), seconds_left(60.0, [AtWork(30.0, 90.0)])
    (80.0, 180.0)
    >>> seconds_left(60.0, [AtWork(30.0, 10.0, 2.0)])
    170.0
    >>> seconds_left(60.0, [AtWork(30.0, 9.0, rest=40.0)])
    100.0
    """
    known = [one.pace for one in running if one.pace]
    if finished:
        took, expected = (sum(each) for each in zip(*finished, strict=True))
        known.append(took / expected)
    outlasted = [one.spent / one.expected for one in running if one.expected and not one.pace]
    factor = max([fmean(known) if known else 1.0, *outlasted])
    rest = [max(one.rest, one.expected * (one.pace or factor) - one.spent) for one in running]
    return (waiting * factor + sum(rest)) / max(1, room)

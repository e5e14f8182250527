"""``nmoe study``: many runs from one file, and the tables and figures that come out of them."""

import argparse
import json
import sys
from pathlib import Path

from nmoe_flower.arguments import SEED, Whole
from nmoe_flower.cli.options import (
    add_command,
    add_finished,
    add_format,
    add_set,
    add_track,
    check_finished,
)
from nmoe_flower.cli.study_report import SET_OF_STUDY, add_report, add_stage_1
from nmoe_flower.commands import command_line
from nmoe_flower.errors import ConfigError, NMoEError
from nmoe_flower.plurals import how_many

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "run a whole study, and make its tables and figures"
_INTERRUPTED = 130
_SHOWN = {
    "finished": "finished",
    "stopped": "stopped half-way",
    "failed": "failed",
    "missing": "missing",
    "broken": "broken",
    "other": "of another configuration",
    "refused": "cannot begin",
}
_LEFT_OUT = ("broken", "other", "refused")  # by every verb
_COMMANDS = """\
Each line makes one run, or one stage 1 that several runs share. Any of them may run anywhere at the
same time, on machines that share the folder: a run whose stage 1 is missing trains it, and whoever
needs it meanwhile waits. Nobody waits if the lines of stage 1 (--part stage-1) end before the
others (--part runs) begin.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs of ``nmoe study`` and their options."""
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    plan = add_command(verbs, "plan", "what is there, what is missing, how long it takes")
    _add_study(plan)
    _add_choice(plan)
    add_format(plan)
    plan.set_defaults(command=_plan)

    run = add_command(verbs, "run", "run what is missing, and go on with what was stopped")
    _add_study(run)
    _add_choice(run)
    run.add_argument(
        "--one",
        metavar="RUN",
        help="this one alone (VARIANT/seed-N, or stage-1/KEY), as nmoe study commands prints it",
    )
    run.add_argument(
        "--jobs", type=Whole(1, 256), default=1, metavar="N", help="runs at a time (1)"
    )
    run.add_argument(
        "--workers",
        type=Whole(0, 4096),
        metavar="N",
        help="client processes of each run (default: the cores, shared by the runs at a time; on a "
        "cluster 1)",
    )
    run.add_argument(
        "--ray-address",
        metavar="auto|HOST:PORT",
        help="a Ray cluster that is there makes the runs, on machines that share the folder",
    )
    add_track(run)
    run.add_argument("--dry-run", action="store_true", help="only say what would be run")
    add_format(run)
    run.set_defaults(command=_run)

    commands = add_command(
        verbs,
        "commands",
        "print a command line for each missing run, for Slurm, GNU parallel or Ray",
        _COMMANDS,
    )
    _add_study(commands)
    _add_choice(commands)
    commands.add_argument(
        "--part",
        choices=("all", "stage-1", "runs"),
        default="all",
        help="only the lines of stage 1, or of what follows it (%(default)s)",
    )
    commands.add_argument("--workers", type=Whole(0, 4096), metavar="N", help="of each run")
    add_track(commands)
    commands.set_defaults(command=_commands)

    add_report(add_command(verbs, "report", "tables and figures of what has finished"))


def _add_study(parser: argparse.ArgumentParser) -> None:
    """``STUDY``, ``--set`` and where its runs are."""
    parser.add_argument(
        "study", metavar="STUDY", help="a TOML file, or the name of one that comes along"
    )
    add_set(parser, SET_OF_STUDY)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="of all studies (./runs)"
    )
    add_finished(parser)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Which runs, and where stage 1 is shared."""
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="variants, or VARIANT/seed-N; * and ? stand for anything",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=SEED, default=[], metavar="SEED", help="only these seeds (all)"
    )
    add_stage_1(parser, "OUT")


def _planned(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    """The study as it stands, of the runs that are meant."""
    from nmoe_flower.recipes import find_study
    from nmoe_flower.study import Study, chosen, make_plan

    check_finished(args.finished)
    study = Study.load(find_study(args.study), args.overrides)
    runs = chosen(study, only=args.only, seeds=args.seeds)
    out = args.out.expanduser().resolve()
    stage_1 = args.stage_1.expanduser().resolve() if args.stage_1 else None
    return make_plan(study, out, stage_1=stage_1, runs=runs, finished=args.finished)


def _plan(args: argparse.Namespace) -> int:
    plan = _planned(args)
    if args.format == "json":
        print(json.dumps(plan.to_json()))
    else:
        _show(plan)
    return 1 if any(one.state in _LEFT_OUT for one in plan.runs) else 0


def _show(plan) -> None:  # type: ignore[no-untyped-def]
    from nmoe_flower.progress import duration
    from nmoe_flower.summary import padded

    numbers = {stage.key: str(number) for number, stage in enumerate(plan.stages, start=1)}
    rows = [["run", "state", "stage 1", "minutes"]]
    for one in plan.runs:
        minutes = f"{one.seconds / 60:.1f}" if one.runs else "-"
        rows.append(
            [
                one.run.name,
                _SHOWN[one.state],
                numbers.get(one.stage_1, "-"),
                minutes,
            ]
        )
    print(f"{plan.study.title}\n", padded(rows), "", sep="\n")
    for one in plan.runs:
        if one.reason:  # which says itself that another configuration is there
            state = "" if one.state == "other" else f"{_SHOWN[one.state]}: "
            print(f"{one.run.name}: {state}{one.reason}")
    if plan.stages:
        table = [["stage 1", "state", "runs", "minutes"]]
        width = len(str(len(plan.stages)))
        for stage in plan.stages:
            how = "failed:" if stage.state == "failed" else stage.state
            state = f"{how} {stage.reason}".strip()
            table.append(
                [
                    f"{numbers[stage.key]:>{width}}  {stage.path.name}",
                    state,
                    str(stage.users),
                    f"{stage.seconds / 60:.1f}",
                ]
            )
        print("", padded(table), "", sep="\n")
    counts = [f"{plan.count(state)} {text}" for state, text in _SHOWN.items() if plan.count(state)]
    print(f"{how_many(len(plan.runs), 'run')}: {', '.join(counts)}")
    if plan.seconds:
        print(
            f"about {duration(plan.seconds)} of work are left, one run at a time (estimated from "
            f"{plan.source})"
        )


def _run(args: argparse.Namespace) -> int:
    """Run the study, or one of its runs; returns the exit code."""
    from nmoe_flower.tracking import Track

    Track.of(args.track)  # refused before anything, if one is not installed
    if args.one and args.ray_address is not None:
        raise ConfigError("--ray-address is for all runs of a study, got --one, too")
    if args.one:
        return _run_one(args)
    if args.dry_run:
        return _plan(args)
    plan = _planned(args)
    from nmoe_flower.engine import named_address
    from nmoe_flower.study import StudyView, run_study

    address = None if args.ray_address is None else named_address(args.ray_address, {})
    view = StudyView(json_lines=args.format == "json")
    done = run_study(
        plan, jobs=args.jobs, workers=args.workers, view=view, track=args.track, ray_address=address
    )
    view.say(
        f"{done.finished} of {how_many(len(plan.runs), 'run is', 'runs are')} finished, "
        f"{done.made} of them now"
        + (f"; {len(done.failed)} failed" if done.failed else "")
        + (f"; {how_many(done.left, 'was', 'were')} not made" if done.left else "")
        + f": {plan.folder}",
        finished=done.finished, made=done.made, failed=done.failed, left=done.left,
    )  # fmt: skip
    if done.interrupted:
        print(f"nmoe: interrupted; go on with: {_again(args)}", file=sys.stderr)
        return _INTERRUPTED
    return 1 if done.failed or done.left else 0


def _again(args: argparse.Namespace) -> str:
    """The command line that goes on."""
    words = ["nmoe", "study", "run", args.study]
    for option, value in (("--out", args.out), ("--stage-1", args.stage_1)):
        words += [option, str(value)] if value and value != Path("runs") else []
    for folder in args.finished:
        words += ["--finished", str(folder)]
    for option, values in (
        ("--set", args.overrides), ("--only", args.only), ("--seeds", args.seeds)
    ):  # fmt: skip
        words += [option, *map(str, values)] if values else []
    words += ["--track", ",".join(args.track)] if args.track else []
    words += ["--ray-address", args.ray_address] if args.ray_address else []
    words += ["--workers", str(args.workers)] if args.workers is not None else []
    words += ["--format", args.format] if args.format != "text" else []
    return command_line(*words, *(["--jobs", args.jobs] if args.jobs > 1 else []))


def _run_one(args: argparse.Namespace) -> int:
    """One run, or one shared stage 1, in this process."""
    from nmoe_flower.machine import usable_cores
    from nmoe_flower.progress import make_progress
    from nmoe_flower.study import StudyTask, carry_out, track_of

    if args.only or args.seeds or args.dry_run or args.jobs > 1:
        raise ConfigError("--one names the run: leave out --only, --seeds, --jobs and --dry-run")
    plan = _planned(args)
    workers = usable_cores() if args.workers is None else args.workers
    task = None
    for one in plan.runs:
        if one.run.name == args.one:
            if one.state == "finished":
                print(f"{args.one} is finished already")
                return 0
            if not one.runs:
                raise NMoEError(f"{args.one}: nothing was touched: {one.reason}")
            stage = next((s for s in plan.stages if s.key == one.stage_1), None)
            task = StudyTask.of(
                one.path, one.run.config, stage_1=stage.path if stage else None, alone=False,
                workers=workers, track=track_of(plan.study.name, one.run, args.track),
            )  # fmt: skip
    for stage in plan.stages:
        if f"stage-1/{stage.key}" == args.one:
            task = StudyTask.of(
                stage.path, stage.config, stage_1=stage.path, alone=True, workers=workers
            )
    if task is None:
        if args.one in {f"stage-1/{key}" for key in plan.keys}:
            print(f"no run needs {args.one} any more")
            return 0
        of_stage_1 = args.one.startswith("stage-1/")
        what, where = (
            ("stage 1", "nmoe study commands prints them")
            if of_stage_1
            else ("run", "nmoe study plan lists them")
        )
        raise ConfigError(f"--one {args.one}: {plan.study.path} has no such {what}; {where}")
    view = make_progress("json" if args.format == "json" else "auto")
    try:
        carry_out(task, view)
    finally:
        view.close()
    return 0


def _commands(args: argparse.Namespace) -> int:
    from nmoe_flower.results import absolute_override

    plan = _planned(args)
    common = ["--out", str(plan.folder.parent)]
    if args.stage_1:
        common += ["--stage-1", str(args.stage_1.expanduser().resolve())]
    if args.overrides:
        common += ["--set", *map(absolute_override, args.overrides)]
    if args.workers is not None:
        common += ["--workers", str(args.workers)]
    if args.track:
        common += ["--track", ",".join(args.track)]
    names = [f"stage-1/{one.key}" for one in plan.stages if one.state != "finished"]
    runs = [one.run.name for one in plan.runs if one.runs]
    wanted = {"all": [*names, *runs], "stage-1": names, "runs": runs}[args.part]
    path = str(plan.study.path.resolve())
    for name in wanted:
        print(command_line("nmoe", "study", "run", path, "--one", name, *common))
    left_out = [one for one in plan.runs if one.state in _LEFT_OUT]
    for one in left_out:
        print(f"nmoe: left out: {one.run.name}: {one.reason}", file=sys.stderr)
    return 1 if left_out else 0

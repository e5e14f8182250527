"""Run the blocks of the pages, in order, as a reader would.

scripts/pages PAGE ...         run what a test runs: all blocks but those that need something
scripts/pages --list           blocks that need something, with the date they last ran; and how many
                               run in a test
scripts/pages --run PAGE ... --has WORD ...
                               at full length, those too that need WORDs, and keep their date

Every page has a scratch folder that looks like a checkout. A shell block is a new terminal there,
`bash -euo pipefail`; the Python blocks of a page are one session; TOML and JSON are parsed, and a
TOML block with the tables of a recipe has to be one. A comment before a block says more:

    <!-- run: OPTIONS -->       add OPTIONS to its `nmoe run` commands, to make them short
    <!-- needs: WORD, ... -->   not in a test: it takes a gpu, the network, minutes, ...
    <!-- file: NAME -->         the block is the file NAME; the text above names it, too
    <!-- serves: PORT -->       it goes on until the page ends; the next block waits for PORT
    <!-- edit: NAME -->         a diff: in the file NAME, which the text above names, too, the lines
                                without + stand once, and become those without -
    <!-- exit: CODE -->         it ends with this exit code, as the page says

A page that edits the package, or adds to it, works with its own copy.

`nmoe run` is cut short anyway: no worker processes, no figures, few rounds of few images, small
experts, and the digits instead of a data set from the hub. No other fork of a warm process starts
worker processes either, as `nmoe forget` and `nmoe_flower.run` do.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nmoe_flower.addresses import free_ports
from nmoe_flower.arguments import Parser
from nmoe_flower.cli import _parser as nmoe_parser
from nmoe_flower.config import Config
from nmoe_flower.engine import flower, processes
from nmoe_flower.errors import NMoEError

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "last-run.json"
FENCE = re.compile(
    r"(?P<marks>(?:^<!-- (?:run|needs|file|edit|serves|exit): [^\n]*-->\n+)*)"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"<!-- (\w+): (.*?) -->")
SHELL, PYTHON = "bash", "python"
LANGUAGES = (SHELL, PYTHON, "toml", "json", "csv", "diff", "text")
SECONDS = 120  # for a block of a test
# At most this much of each in a test; 0 images means all of them.
SHORT = {
    "data.train-per-client": 40,
    "data.test-per-client": 20,
    "extractor.rounds": 2,
    "extractor.local-steps": 2,
    "head.rounds": 2,
    "expert.epochs": 1,
    "gate.rounds": 2,
    "gate.local-steps": 1,
    "gate.cycles": 1,
    "run.control-epochs": 1,
    "alignment.rounds": 2,
    "alignment.local-steps": 2,
    "baseline.rounds": 2,
    "baseline.local-steps": 2,
    "baseline.tuning-steps": 5,
    "adapter.steps": 5,
    "adapter.averaged-steps": 5,
}
# Instead of a data set from the hub.
DIGITS = [
    "data.dataset=digits",
    "data.crop-padding=1",
    "data.cutout=0",
    "data.flip=false",
    "extractor.backbone=digits",
    "extractor.widths=",
    "extractor.stem=",
    "contrast.view-size=0",
]
OF_THE_NETWORK = DIGITS[4:7]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    above: str  # the paragraph before it
    run: str = ""
    needs: tuple[str, ...] = ()
    file: str = ""
    edit: str = ""
    serves: int = 0
    exit: int = 0

    @property
    def place(self) -> str:
        """Where it stands, as editors understand it."""
        return f"{self.page}:{self.line}"

    @property
    def digest(self) -> str:
        """Of page and text: a block that changes has not run yet."""
        return hashlib.sha256(f"{self.page}\n{self.text}".encode()).hexdigest()[:12]


class BlockError(Exception):
    """A block did not do what its page says; the text says which, where and how."""


# --- reading ---


def pages(root: Path = ROOT) -> list[str]:
    """The pages whose blocks run."""
    found = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), root / "experiments/README.md"]
    names = sorted(path.relative_to(root).as_posix() for path in found)
    return [name for name in names if name not in ("CHANGELOG.md", "docs/results.md")]


def blocks(page: str, root: Path = ROOT) -> list[Block]:
    """The blocks of a page.

    Raises:
        BlockError: A mark is not known, or a block has no language.
    """
    content = (root / page).read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(content):
        line = content.count("\n", 0, match.start("language")) + 1
        place = f"{page}:{line}"
        if match["language"] not in LANGUAGES:
            kind = match["language"]
            raise BlockError(f"{place}: language {kind!r}; allowed: {', '.join(LANGUAGES)}")
        marks = dict(MARK.findall(match["marks"]))
        needs = tuple(word.strip() for word in marks.get("needs", "").split(",") if word.strip())
        above = content[: match.start()].rstrip().split("\n\n")[-1]
        block = Block(
            page,
            line,
            match["language"],
            textwrap.dedent(match["text"]),
            above,
            run=marks.get("run", ""),
            needs=needs,
            file=marks.get("file", ""),
            edit=marks.get("edit", ""),
            serves=int(marks.get("serves", 0)),
            exit=int(marks.get("exit", 0)),
        )
        named = block.file or block.edit
        if Path(named).name not in above:
            raise BlockError(f"{place}: the text above does not name the file {named}")
        found.append(block)
    stray = re.findall(r"^<!-- \w+: .*$", FENCE.sub("", content), re.MULTILINE)
    if stray:
        raise BlockError(f"{page}: a mark with no block after it, or an unknown one: {stray[0]}")
    return found


# --- commands, cut short ---


def shortened(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """An `nmoe` command as a test runs it; PAGE_OPTIONS in the environment has the mark's text."""
    command = list(arguments)
    kind = command[:1]
    if "PAGE_OPTIONS" not in environment or kind not in (["run"], ["partition"]):
        return command
    cuts = [] if "--resume" in command else list(_cuts(command))
    if kind == ["run"]:
        command += ["--workers", "0", "--no-figures"]
    command += ["--set", *cuts] if cuts else []
    return command + (shlex.split(environment["PAGE_OPTIONS"]) if kind == ["run"] else [])


def _cuts(command: Sequence[str]) -> Iterator[str]:
    """Settings that make the run of a command short, and keep it off the network."""
    try:
        given = nmoe_parser().parse_args(command)
        config = Config.load(given.recipe, given.overrides).flat()
    except (NMoEError, SystemExit):
        return  # the command itself will say it
    dataset = str(config["data.dataset"])
    own = Path(dataset).exists()
    if "/" in dataset and not own:
        given_network = config["extractor.method"] == "pretrained"  # which looks at any images
        yield from (cut for cut in DIGITS if not (given_network and cut in OF_THE_NETWORK))
    for key, most in SHORT.items():
        images = key.startswith("data.")
        if int(str(config[key])) > most or (images and not own and not config[key]):
            yield f"{key}={most}"
    if config["expert.hidden"]:
        yield "expert.hidden=32"


# --- running ---


def scratch(folder: Path, root: Path = ROOT, *, whole: bool = False) -> None:
    """Make a folder look like a checkout: a copy, but for results, and unless ``whole`` docs."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    caches = shutil.ignore_patterns("__pycache__")
    written = shutil.ignore_patterns("*.pyc.*")  # at this moment, by another process
    for name in sorted({Path(path).parts[0] for path in listed.split("\0") if path}):
        if name == "results" or (name in ("docs", "tests") and not whole):
            (folder / name).symlink_to(root / name)
        elif (root / name).is_dir():
            ignore = written if name == "nmoe_flower" else caches
            shutil.copytree(root / name, folder / name, ignore=ignore)
        else:
            shutil.copy(root / name, folder / name)


class Reader:
    """Somebody who follows one page: a folder, terminals, and one Python session.

    Args:
        folder: Where the reader works; see `scratch`.
        programs: Goes first on the PATH, before the environment's programs.
        short: Cut `nmoe run` short, and stop a block after `SECONDS`.
        edits: The package in the folder is the one to work with.
        changed: Takes the place of ``programs`` from the first change of that package.
    """

    def __init__(
        self,
        folder: Path,
        programs: Path | None = None,
        *,
        short: bool = True,
        edits: bool = False,
        changed: Path | None = None,
    ) -> None:
        self.folder = folder
        self.short = short
        self.changed = changed
        self.path = path = [str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment = {
            **os.environ,
            **({"PYTHONPATH": str(folder)} if edits else {}),
            "PYTHON": sys.executable,
            "PATH": os.pathsep.join([str(programs), *path] if programs else path),
            flower.HOME: str(folder / ".flwr"),
            flower.LOCAL_PORT: str(free_ports(1)[0]),
            "COLUMNS": "100",
            **({"PAGE_WORKERS": "0"} if short else {}),
        }
        self._stack = contextlib.ExitStack()
        self._session: subprocess.Popen[str] | None = None
        self._log = folder / ".session.log"

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        processes.end(flower.mark(self.folder / ".flwr"))  # the SuperLink that `flwr run` leaves

    def follow(self, block: Block) -> None:
        """Do what a block says.

        Raises:
            BlockError: It failed.
        """
        if self.changed and (block.file or block.edit).startswith("nmoe_flower/"):
            self.environment["PATH"] = os.pathsep.join([str(self.changed), *self.path])
            self.changed = None
        if block.file:
            target = self.folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif block.edit:
            target = self.folder / block.edit
            target.write_text(edited(block, target.read_text(encoding="utf-8")), encoding="utf-8")
        elif block.language == SHELL:
            self._shell(block)
        elif block.language == PYTHON:
            self._python(block)
        if block.language == "json":
            self._parse(block, json.loads)
        elif block.language == "toml":
            self._parse(block, recipe)

    def _parse(self, block: Block, parse: object) -> None:
        try:
            parse(block.text)  # type: ignore[operator]
        except Exception as error:
            raise BlockError(f"{block.place}: {error}") from error

    def _start(self, command: list[str], **options: object) -> "subprocess.Popen[str]":
        """A command in a process group of its own, which ends with the page."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
            **options,  # type: ignore[call-overload]
        )
        self._stack.callback(_end, process)
        return process  # type: ignore[no-any-return]

    def _shell(self, block: Block) -> None:
        environment = self.environment
        if self.short:
            environment = {**environment, "PAGE_OPTIONS": block.run}
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        with tempfile.TemporaryFile("w+", dir=self.folder) as said:
            process = self._start(command, stdin=subprocess.DEVNULL, stdout=said, env=environment)
            if block.serves:
                trouble = _wait_for(block.serves, process)
            else:
                try:
                    code = process.wait(SECONDS if self.short else None)
                    trouble = f"exit code {code}" if code != block.exit else ""
                except subprocess.TimeoutExpired:
                    trouble = f"not over after {SECONDS} s"
                _end(process)
            if trouble:
                said.seek(0)
                raise BlockError(f"{block.place}: {trouble}\n{block.text}\n{said.read()}")

    def _python(self, block: Block) -> None:
        if self._session is None:
            self._session = self._start(
                ["python", "-c", SESSION],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self.environment,
            )
            self._stack.callback(self._session.stdout.close)  # type: ignore[union-attr]
            self._stack.callback(self._session.stdin.close)  # type: ignore[union-attr]
        session = self._session
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(json.dumps([block.place, block.text]) + "\n")
        session.stdin.flush()
        answer = session.stdout.readline()
        trouble = json.loads(answer) if answer else "the session has ended"
        if trouble:
            raise BlockError(f"{block.place}: {trouble}")


# Blocks come in as JSON, one a line; what went wrong goes out, and all that a block prints is left.
SESSION = """\
import io, json, os, sys, traceback, warnings
lines, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDWR), 0)
os.dup2(0, 1)
os.dup2(0, 2)
sys.path.insert(0, "")
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "'click", DeprecationWarning)  # as for the tests
names = {"__name__": "__page__"}
for line in lines:
    place, text = json.loads(line)
    try:
        exec(compile(text, place, "exec"), names)
        trouble = ""
    except BaseException:
        trouble = traceback.format_exc()
    print(json.dumps(trouble), file=answers, flush=True)
"""


def edited(block: Block, text: str) -> str:
    """What a diff makes of a file; without any old line it is added at the end.

    Raises:
        BlockError: The old lines do not stand in the file, or more than once.
    """
    lines = [line or " " for line in block.text.splitlines()]
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    if not old:
        return text + new
    if text.count(old) != 1:
        told = f"{block.edit} has these lines {text.count(old)} times"
        raise BlockError(f"{block.place}: {told}:\n{old}")
    return text.replace(old, new)


def edits(page: Sequence[Block]) -> bool:
    """Whether a page changes the package."""
    return any(block.edit or block.file.startswith("nmoe_flower/") for block in page)


def recipe(text: str) -> None:
    """TOML, and a recipe if it has only tables of one."""
    tables = tomllib.loads(text)
    if tables and set(tables) <= set(Config.model_fields):
        Config.parse(tables)


def _wait_for(port: int, process: "subprocess.Popen[str]") -> str:
    """Until something listens at the port of this machine; returns what is wrong."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            return f"ended with exit code {process.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return ""
        time.sleep(0.05)
    return f"nothing listens at port {port} after {SECONDS} s"


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process and what it started, kindly first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return


# --- the dates ---


def dates() -> dict[str, dict[str, str]]:
    """Page and digest of a block: when it last ran."""
    read: dict[str, dict[str, str]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return read


def keep(ran: Sequence[Block], today: datetime.date) -> None:
    """Write the dates of blocks, and forget those that no page has any more."""
    known = {date for page in dates().values() for date in page.items()}
    kept = {**dict(known), **{block.digest: today.isoformat() for block in ran}}
    needing = [block for page in pages() for block in blocks(page) if block.needs]
    record: dict[str, dict[str, str]] = {}
    for block in needing:
        if block.digest in kept:
            record.setdefault(block.page, {})[block.digest] = kept[block.digest]
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def table() -> str:
    """The blocks that need something, one a line."""
    known = {digest: date for page in dates().values() for digest, date in page.items()}
    lines = []
    for page in pages():
        for block in blocks(page):
            if block.needs:
                date = known.get(block.digest, "never")
                first = block.text.splitlines()[0]
                lines.append(
                    f"{date:<10}  {', '.join(block.needs):<18}  {block.place:<36}  {first}"
                )
    return "\n".join(lines)


# --- the command ---


def follow(page: str, *, full: bool, has: Sequence[str]) -> list[Block]:
    """Run the blocks of a page that need no more than there is; returns those that need some."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        found = blocks(page)
        scratch(Path(folder), whole=edits(found))
        reader = Reader(Path(folder), short=not full, edits=edits(found))
        stack.enter_context(reader)
        ran = []
        for block in found:
            if set(block.needs) <= set(has):
                if block.language in (SHELL, PYTHON):
                    print(f"{block.place}  {block.text.splitlines()[0]}", flush=True)
                reader.follow(block)
                ran += [block] if block.needs else []
        return ran


def main() -> int:
    """List, or run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    parser.add_argument("--list", action="store_true", help="what needs something, and when it ran")
    parser.add_argument("--run", action="store_true", help="at full length, and keep the date")
    parser.add_argument("--has", nargs="+", default=[], metavar="WORD", help="as in needs")
    args = parser.parse_args()
    if args.list:
        print(table())
        tested = [block for page in pages() for block in blocks(page) if not block.needs]
        for kind, count in Counter(block.language for block in tested).most_common():
            print(f"{'in a test':<10}  {kind:<18}  {count} blocks")
        return 0
    unknown = sorted(set(args.pages) - set(pages()))
    if unknown:
        parser.error(f"{', '.join(unknown)}; allowed: {', '.join(pages())}")
    for page in args.pages:
        try:
            ran = follow(page, full=args.run, has=args.has)
        except BlockError as error:
            print(error, file=sys.stderr)
            return 1
        if args.run:
            keep(ran, datetime.datetime.now(tz=datetime.UTC).date())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

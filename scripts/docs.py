"""Put docs/ and the generated reference together, and build the site with mkdocs.

scripts/docs            build to build/site; warnings are errors
scripts/docs --write    only rewrite docs/reference/configuration.md from nmoe_flower.config, and
                        study-file.md from nmoe_flower.study.declared
"""

import argparse
import contextlib
import importlib
import inspect
import io
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin
from unittest import mock

from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).resolve().parent))

import notebooks

import nmoe_flower
from nmoe_flower import errors
from nmoe_flower.arguments import Parser
from nmoe_flower.catalogue import ADAPTER_CONTROLS, BASELINES, CONTROLS, GATES, TEXT_GATES
from nmoe_flower.cli import _parser as nmoe_parser
from nmoe_flower.cli import main as main_of_nmoe
from nmoe_flower.config import Config, kebab
from nmoe_flower.config.section import NamesOrOwn
from nmoe_flower.own_code import FORM
from nmoe_flower.recipes import packaged_studies
from nmoe_flower.report.html import write_page
from nmoe_flower.study import Study, findings_of, write_webpage
from nmoe_flower.study.declared import (
    ComparisonSpec,
    FigureSpec,
    NumberSpec,
    SweepSpec,
    TableSpec,
)
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.measured import gates_of, numbers_of

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "build" / "docs-source"
SITE = ROOT / "build" / "site"
CONFIGURATION = DOCS / "reference" / "configuration.md"
STUDY_FILE = DOCS / "reference" / "study-file.md"
# Pages of published runs, by name: patterns below results/. Published studies have theirs, too.
REPORTS = {"fedce-long": "fedce/long/seed-*"}


# --- configuration ---


def configuration() -> str:
    """The table of every key, from the field descriptions and defaults."""
    lines = [
        "# Configuration",
        "",
        "Every key with its default. A recipe is a TOML file with one table per section; on the "
        "command line the same key is `--set section.key=value`, under `flwr run` "
        "`--run-config 'section.key=value'`. Unknown keys are refused. `nmoe config` prints the "
        "resolved recipe. This page is generated: `scripts/docs --write`.",
    ]
    for name, section in Config.model_fields.items():
        model: Any = section.annotation
        lines += ["", f"## {name}", "", str(inspect.getdoc(model)), ""]
        lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        for key, field in model.model_fields.items():
            label = f"{name}.{field.alias or key.replace('_', '-')}"
            default = _default(field)
            meaning = (field.description or "").replace("|", "\\|")
            lines.append(f"| `{label}` | {default} | {_allowed(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else "empty"


def _allowed(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if get_origin(inner) is Annotated:
            return f"any of {_names_or_own(get_args(inner)[1:])}"
        if get_args(inner):
            return "any of " + ", ".join(f"`{choice}`" for choice in get_args(inner))
        kinds = {int: "whole numbers", str: "names"}
        return f"{kinds.get(inner, 'numbers')}, with commas"
    if get_args(kind):
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    if kind is str:
        return _names_or_own(field.metadata) or "text"
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in signs.items()
        if getattr(bound, name, None) is not None
    ]
    return ("whole number " if kind is int else "number ") + " and ".join(bounds)


def _names_or_own(metadata: Iterable[Any]) -> str:
    """The names that a text may be, if it may not be any."""
    return "".join(
        ", ".join(f"`{name}`" for name in (*one.listed, FORM))
        for one in metadata
        if isinstance(one, NamesOrOwn)
    )


# --- a study's file ---


STUDY_KEYS = {
    "title": "one line; what makes a file a study",
    "about": "Markdown above the report",
    "like": "a study whose recipe, settings, axes and variants are taken unless given here",
    "recipe": "where settings start: a recipe's name or file",
    "seeds": "every variant is run with each, and runs of other studies count that have one of "
    "them; if none is named: those of the included runs, or `[0]`",
    "paper-tables": "`true`: the first paper's values beside runs of its settings",
    "[set]": "settings of every run",
    "[axes]": "a configuration key with its values, or a name whose values set several keys",
    "[variants.NAME]": "`label`, `recipe`, and `set`: settings of its own",
    "[[skip]]": "dimensions with values: what is not run",
    "[[exceptions]]": "dimensions with values, and `set`: runs that have settings of their own",
    "[[include]]": "`study`, and `where`: runs of another study, with the same axes",
    "[labels]": "what tables and figures call a value, one of a dimension (`test.local`), "
    "or a dimension",
}
STUDY_EXAMPLES = {
    "gates": """\
title = "Gates on skewed data"
seeds = [0, 1]

[set]
gate.methods = ["federated", "local"]
run.controls = ["fedavg"]

[axes]
data.tau = [0.5, 0.3, 0.2]

[[exceptions]]                          # made before, with other settings
data.tau = 0.2
seed = 1
set = { gate.rounds = 50 }

[[tables]]
name = "reached"
rows = ["gate"]
columns = ["data.tau"]
tests = ["iid"]
show = ["paper", "difference"]

[[paper]]                               # a cell of a table, and what was published for it
gate = "federated"
test = "iid"
data.tau = 0.3
accuracy = 0.75

[[comparisons]]                         # paired by seed
name = "more-skew"
of = { data.tau = 0.3 }
against = { data.tau = 0.5 }
gates = ["federated"]
tests = ["iid"]

[[figures]]                             # a line for each gate
name = "skew"
kind = "lines"
x = "data.tau"
series = ["gate"]
test = "iid"

[[figures]]                             # who asks whom, a map for each value
name = "routing"
kind = "routing"
series = ["data.tau"]
gate = "federated"
test = "iid"

[[figures]]                             # how stage 1 went
name = "stage-1"
kind = "rounds"
x = "bytes"
series = ["data.tau"]
test = "iid"
""",
    "rates": """\
title = "A rate for each, chosen on images that nobody trains on"

[set]
data.validation-per-client = 20

[axes.rate]                             # a name of its own, whose values set several keys
low = { expert.learning-rate = 1e-3, baseline.learning-rate = 0.03 }
high = { expert.learning-rate = 1e-2, baseline.learning-rate = 0.1 }

[variants.ours]
label = "Networked MoE"
set = { gate.methods = ["federated", "local"] }

[variants.fedavg]
label = "FedAvg"
set = { run.system = "fedavg" }

[variants.fedavg-home]
label = "FedAvg, tuned at home"
set = { run.system = "fedavg", baseline.tuning-steps = 100 }

[sweep]                                 # a rate for each variant
over = ["rate"]
gate = ["federated", "fedavg"]          # the first of them that a variant has judges it
judged-by = { fedavg-home = "fine-tuned" }
tests = []                              # no test is told: another study runs at the choice
""",
    "costs": """\
title = "What the gates cost, of runs that are there"

[[include]]                             # the same runs, of gates.toml beside this file
study = "gates"
where = { data.tau = [0.5, 0.3] }

[labels]
federated = "FedGate"

[[tables]]                              # a column for each number
name = "costs"
rows = ["data.tau"]
columns = ["number"]
numbers = [
    { label = "FedGate + prior", gate = "federated+prior", test = "iid" },
    { label = "FedAvg", gate = "control:fedavg", test = "iid", digits = 2 },
    { label = "bytes, FedGate", gate = "federated", metric = "bytes_per_device", digits = 0 },
    { label = "minutes", metric = "minutes", digits = 1 },
]
""",
}
_GIVEN: dict[str, Any] = {
    "extractor.method": "pretrained",
    "extractor.backbone": "efficientnet-lite0",
}
# Runs that together measure all there is, as the page calls them.
_MEASURING: dict[str, dict[str, Any]] = {
    "networked": {
        "data.num-clients": 2, "data.scheme": "natural", "data.domains": "clean,rot90",
        "gate.methods": ",".join(GATES), "run.controls": ",".join(CONTROLS), "gate.prior": "none",
        "head.rounds": 1, "head.standardise": True, "head.start": "ridge",
        **_GIVEN, "extractor.head": "linear", "expert.init": "scratch",
    },
    "FedSC": {"extractor.method": "fedsc"},
    "private": {
        "extractor.method": "fedsc", "contrast.projector-norm": "none",
        "privacy.enabled": True, "privacy.weights": True,
    },
    "language": {
        "run.system": "language", "data.kind": "text", "data.dataset": "texts",
        "data.scheme": "natural", "data.validation-per-client": 1, "text.tokenizer": "bytes",
        "extractor.method": "pretrained", "extractor.backbone": "small-lm",
        "gate.methods": ",".join(n for n, g in {**GATES, **TEXT_GATES}.items() if g.of_text),
        "adapter.controls": ",".join(ADAPTER_CONTROLS),
    },
    "aligned": {"run.system": "aligned"},
    "published": {"run.system": "fedavg"},
}  # fmt: skip
_SYSTEMS = ("networked", "language", "aligned", "published")
_OPEN = (
    (r"stages\..*\.(\w+)", r"stages.STAGE.\1"),
    (r"by_owner\..*", "by_owner.GATE.iid.DOMAIN"),
    (r"learning_rates\..*", "learning_rates.CONTROL"),
)


def measured_gates() -> dict[str, tuple[str, ...]]:
    """By system, the gates and controls of its results."""
    found = {name: gates_of(Config.parse(_MEASURING[name])) for name in _SYSTEMS[:3]}
    for name, entry in BASELINES.items():
        given = _GIVEN if entry.needs_given else {}
        found[name] = gates_of(Config.parse({"run.system": name, **given}))
    return found


def measured_numbers() -> dict[str, list[str]]:
    """The names that a metric may have, but for configuration keys, and the runs that have each."""
    found: dict[str, list[str]] = {}
    for kind, settings in _MEASURING.items():
        config = Config.parse(settings)
        names = numbers_of(config)
        for name in names[: len(names) - len(config.flat())]:  # its keys come last
            for pattern, told in _OPEN:
                name = re.sub(f"^{pattern}$", told, name)
            if kind not in (kinds := found.setdefault(name, [])):
                kinds.append(kind)
    return found


def _names_in_results() -> list[str]:
    lines = [
        "",
        "## Names of gates",
        "",
        "As results name them, and so the dimension `gate`. Unless `gate.prior` is `none`, beside "
        "each gate and control of the networked system stands its answer with prior correction, "
        "`federated+prior` or `control:fedavg+prior`; `control:local-classifier` has none. What "
        "each of them is: [glossary](glossary.md#gates).",
        "",
        "| `run.system` | gates |",
        "|---|---|",
    ]
    plain = []
    for system, gates in measured_gates().items():
        if gates == (system,):
            plain.append(system)
            continue
        lines.append(f"| `{system}` | {', '.join(f'`{gate}`' for gate in gates)} |")
    lines += [
        f"| {', '.join(f'`{name}`' for name in plain)} | the system's own name |",
        "",
        "## Names of numbers",
        "",
        "What a metric may be, beside every [key of the configuration](configuration.md). One with "
        "a point in its name is a path in `results.json`, and that of a whole run. What each of "
        "them is: [glossary](glossary.md#metrics-and-costs).",
        "",
        "| metric | in tables | of runs |",
        "|---|---|---|",
    ]
    for name, kinds in measured_numbers().items():
        told = "all" if {*_SYSTEMS} <= {*kinds} else ", ".join(_widest(kinds))
        lines.append(f"| `{name}` | {Labels().of_value('metric', name)} | {told} |")
    return lines


def _widest(kinds: list[str]) -> list[str]:
    """Kinds of runs without those that are some of another: FedSC's are the networked system's."""
    if "networked" in kinds:
        return [kind for kind in kinds if kind in _SYSTEMS]
    return ["FedSC"] if "FedSC" in kinds else kinds


def study_file() -> str:
    """Every key of a study's file, from the descriptions of what it declares."""
    lines = [
        "# A study's file",
        "",
        "Every key of the file that `nmoe study` reads ([how to write one](../how-to/studies.md)). "
        "Unknown keys are refused. A dimension is `variant`, `seed`, `gate`, `test`, `metric`, or "
        "an axis. This page is generated: `scripts/docs --write`.",
        "",
        "| key | meaning |",
        "|---|---|",
        *(f"| `{key}` | {meaning} |" for key, meaning in STUDY_KEYS.items()),
    ]
    for table, model in (
        ("[[tables]]", TableSpec),
        ("numbers = [{ }]", NumberSpec),
        ("[[comparisons]]", ComparisonSpec),
        ("[sweep]", SweepSpec),
        ("[[figures]]", FigureSpec),
    ):
        lines += ["", f"## {table}", "", str(inspect.getdoc(model)), ""]
        lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        for key, field in model.model_fields.items():
            meaning = (field.description or "").replace("|", "\\|")
            empty = not field.is_required() and field.default in (None, {})
            default = "needed" if field.is_required() else "empty" if empty else _default(field)
            lines.append(f"| `{kebab(key)}` | {default} | {_of_study(field)} | {meaning} |")
    lines += [
        "",
        "## [[paper]]",
        "",
        "The dimensions of one cell, or of several by lists: `gate` and `test`, and `variant` and "
        "axes where there are several. Any other key is a metric with its published value. A table "
        "must show the cell, and a cell has one value.",
        *_names_in_results(),
        "",
        "## Examples",
    ]
    for name, text in STUDY_EXAMPLES.items():
        lines += ["", f"`{name}.toml`:", "", "```toml", text.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _of_study(field: FieldInfo) -> str:
    """What a key of a study's file may hold."""
    kind: Any = field.annotation
    text = str(kind)
    if "Mapping[str, str]" in text:
        return "variants with a gate each"
    if "Mapping" in text:
        return "dimensions with a value or a list"
    if "NumberSpec" in text:
        return "a list of tables"
    if "Literal" in text:
        if type(None) in get_args(kind):
            kind = get_args(kind)[0]
        inner = kind if get_origin(kind) is not tuple else get_args(kind)[0]
        names = ", ".join(f"`{choice}`" for choice in get_args(inner))
        return names if inner is kind else f"any of {names}"
    if "tuple" in text:
        return "a list of names"
    return "whole number" if "int" in text else "text"


# --- command line and errors ---


def commands(parser: argparse.ArgumentParser | None = None, *words: str) -> Iterator[list[str]]:
    """Every command of a parser, the parser's own first; that of ``nmoe`` if none is given."""
    parser = parser or nmoe_parser()
    yield [*words]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from commands(inner, *words, name)


def command_line() -> str:
    """The help text of every command."""
    lines = ["# Command line", "", "As the commands print it themselves."]
    for words in commands():
        lines += ["", f"## {' '.join(['nmoe', *words])}", "", "```text", help_text(words), "```"]
    lines += [
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | the command finished and its results are written |",
        "| 1 | it failed; one message on standard error says what and why |",
        "| 2 | wrong usage |",
        "| 130 | interrupted by Ctrl-C; 143 by SIGTERM |",
    ]
    return "\n".join(lines) + "\n"


def help_text(words: list[str]) -> str:
    """What ``nmoe WORDS --help`` prints, at a width of 92."""
    shown = io.StringIO()
    plain = {"COLUMNS": "92", "NO_COLOR": "1", "PYTHON_COLORS": "0"}
    with (
        mock.patch.dict(os.environ, plain),
        contextlib.redirect_stdout(shown),
        contextlib.suppress(SystemExit),
    ):
        main_of_nmoe([*words, "--help"])
    return shown.getvalue().strip()


def error_tree() -> str:
    """The error tree, from its docstring, and each error's own text."""
    lines = ["# Errors", "", "```text", str(inspect.getdoc(errors)), "```", ""]
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
    lines += [f"- `{c.__name__}`: {inspect.getdoc(c)}" for c in classes]
    return "\n".join(lines) + "\n"


# --- Python reference ---


def public_modules() -> list[str]:
    """Packages and modules that are an interface: at the top level, not inside a package."""
    found = [f"nmoe_flower.{info.name}" for info in pkgutil.iter_modules(nmoe_flower.__path__)]
    return [name for name in found if public_names(name)]


def public_names(module_name: str) -> list[str]:
    """What a module offers: its ``__all__``, or the functions and classes that it defines."""
    module = importlib.import_module(module_name)
    return list(getattr(module, "__all__", ())) or sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module_name
    )


def silent_names() -> list[str]:
    """Public modules, classes and functions without a docstring."""
    silent = []
    for module_name in public_modules():
        module = importlib.import_module(module_name)
        silent += [] if module.__doc__ else [module_name]
        for name in public_names(module_name):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                silent += [] if inspect.getdoc(value) else [f"{module_name}.{name}"]
    return silent


def python_page(module_name: str) -> str:
    """A page of the reference, which mkdocstrings fills from the docstrings."""
    lines = [f"# {_short(module_name)}", "", f"::: {module_name}"]
    module = importlib.import_module(module_name)
    for name in _hidden_names(module_name):
        lines += ["", f"::: {getattr(module, name).__module__}.{name}", "    options:"]
        lines += ["      show_root_heading: true", "      show_root_toc_entry: true"]
    return "\n".join(lines) + "\n"


def face() -> str:
    """The page of what ``import nmoe_flower as nmoe`` has: every name, and the page it is on."""
    lines = [
        f"# nmoe_flower\n\n{inspect.getdoc(nmoe_flower)}\n",
        "| name | what it is |",
        "|---|---|",
    ]
    homes = {name: home for home, names in nmoe_flower._HOMES.items() for name in names}
    for name in nmoe_flower.__all__:
        page = f"{homes[name].split('.')[1]}.md"
        said = (inspect.getdoc(getattr(nmoe_flower, name)) or "").splitlines()[0]
        lines.append(f"| [`{name}`]({page}) | {said} |")
    return "\n".join(lines) + "\n"


def _hidden_names(module_name: str) -> list[str]:
    """Names that a file of the package has, too: who reads the files finds that instead."""
    files = {info.name for info in pkgutil.iter_modules(_path(module_name))}
    return [name for name in public_names(module_name) if name in files]


def _short(module_name: str) -> str:
    return module_name.removeprefix("nmoe_flower.")


def _path(module_name: str) -> list[str]:
    return list(getattr(importlib.import_module(module_name), "__path__", ()))


# --- the site ---


def assemble(target: Path, *, execute: bool = False) -> None:
    """Copy docs/ to ``target`` and add what is generated.

    Args:
        target: Made anew.
        execute: Whether to run the notebooks, so that their pages have outputs.
    """
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(DOCS, target)
    for path in notebooks.notebooks():
        with tempfile.TemporaryDirectory() as folder:
            notebook = notebooks.executed(path, Path(folder)) if execute else notebooks.read(path)
        notebooks.page(notebook, target / "notebooks" / f"{path.stem}.md")
    _bring_results(target)
    reports = target.resolve() / "reports"
    with contextlib.chdir(ROOT):  # so that pages name folders as a checkout has them
        for name, pattern in REPORTS.items():
            write_page(sorted(Path("results").glob(pattern)), reports / f"{name}.html")
        for study in packaged_studies():
            if Path("results", study.name, "table.json").is_file():
                findings = findings_of(Study.load(study.path), Path("results"))
                write_webpage(findings, reports / f"{study.name}.html")
    reference = target / "reference"
    (reference / "configuration.md").write_text(configuration(), encoding="utf-8")
    (reference / "study-file.md").write_text(study_file(), encoding="utf-8")
    (reference / "cli.md").write_text(command_line(), encoding="utf-8")
    (reference / "errors.md").write_text(error_tree(), encoding="utf-8")
    (reference / "python").mkdir()
    for name in public_modules():
        page = reference / "python" / f"{_short(name)}.md"
        page.write_text(python_page(name), encoding="utf-8")
    (reference / "python" / "nmoe_flower.md").write_text(face(), encoding="utf-8")


def _bring_results(target: Path) -> None:
    """The result files stand beside docs/; on the site they stand in it, one folder less away."""
    shutil.copytree(ROOT / "results", target / "results")
    for page in target.rglob("*.md"):
        up = "../" * len(page.relative_to(target).parts)
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(f"]({up}results/", f"]({up[3:]}results/"), encoding="utf-8")


def on_config(config: Any) -> Any:
    """Give every module its place in the navigation; mkdocs calls this."""
    names = ["nmoe_flower", *public_modules()]
    pages = [{_short(name): f"reference/python/{_short(name)}.md"} for name in names]
    reference = next(entry["Reference"] for entry in config["nav"] if "Reference" in entry)
    next(entry for entry in reference if "Python" in entry)["Python"] = pages
    return config


def build() -> int:
    """Build build/site; returns the exit code."""
    for path, text in ((CONFIGURATION, configuration()), (STUDY_FILE, study_file())):
        if path.read_text(encoding="utf-8") != text:
            print(f"{path} is out of date: run scripts/docs --write", file=sys.stderr)
            return 1
    if silent := silent_names():
        print(f"public names without a docstring: {', '.join(silent)}", file=sys.stderr)
        return 1
    assemble(SOURCE, execute=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--clean", "--strict", "--quiet"]
    environment = {
        **os.environ,
        "DISABLE_MKDOCS_2_WARNING": "true",
        "NO_MKDOCS_2_WARNING": "true",
        "SITE_VERSION": version(),
    }
    code = subprocess.run(command, cwd=ROOT, check=False, env=environment).returncode
    if code:
        return code
    if missing := unlisted(SITE / "objects.inv"):
        print(f"public names that the site does not have: {', '.join(missing)}", file=sys.stderr)
        return 1
    if foreign := fetched(SITE / "index.html"):
        print(f"the site would fetch from elsewhere: {', '.join(foreign)}", file=sys.stderr)
        return 1
    print(f"built {SITE}; to see it: {Path(sys.executable).name} -m http.server -d {SITE}")
    return 0


def fetched(page: Path) -> list[str]:
    """What a browser would load from other places to show a page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(
        r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]+)', text
    )


def unlisted(inventory: Path) -> list[str]:
    """Public names that are not in the site's list of all objects."""
    lines = zlib.decompress(inventory.read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    listed = {line.split(" ")[0] for line in lines}
    every = {
        f"{name}.{one}.{one}" if one in _hidden_names(name) else f"{name}.{one}"
        for name in public_modules()
        for one in public_names(name)
    }
    return sorted(every - listed)


def version() -> str:
    """Name and version, as the site shows them beside the link to the code."""
    return f"{nmoe_flower.__name__.replace('_', '-')} {nmoe_flower.__version__}"


def main() -> int:
    """Build, or only rewrite what is committed."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite generated pages")
    if parser.parse_args().write:
        CONFIGURATION.write_text(configuration(), encoding="utf-8")
        STUDY_FILE.write_text(study_file(), encoding="utf-8")
        return 0
    return build()


if __name__ == "__main__":
    raise SystemExit(main())

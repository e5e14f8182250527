"""Put docs/ and the generated reference together, and build the site with mkdocs.

scripts/docs            build to build/site; warnings are errors
scripts/docs --write    only rewrite docs/reference/configuration.md from nmoe_flower.config
"""

import argparse
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

import nmoe_flower
from nmoe_flower import errors
from nmoe_flower.config import Config

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "build" / "docs-source"
CONFIGURATION = DOCS / "reference" / "configuration.md"
COMMANDS = (
    (), ("run",), ("partition",), ("report",), ("config",), ("privacy",), ("bundle",), ("serve",),
    ("infer",), ("peers",),
    ("bench",), ("bench", "rounds"), ("bench", "infer"),
)  # fmt: skip
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Examples")
SKIPPED = {"nmoe_flower.bench"}  # measured code, not an interface; see how-to/benchmarks.md


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
        if get_args(inner):
            return "any of " + ", ".join(f"`{choice}`" for choice in get_args(inner))
        return f"{'whole numbers' if inner is int else 'numbers'}, with commas"
    if get_args(kind):
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    if kind is str:
        return "text"
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in signs.items()
        if getattr(bound, name, None) is not None
    ]
    return ("whole number " if kind is int else "number ") + " and ".join(bounds)


# --- command line and errors ---


def command_line() -> str:
    """The help text of every command."""
    lines = ["# Command line", "", "As the commands print it themselves."]
    environment = {**os.environ, "COLUMNS": "92", "NO_COLOR": "1", "PYTHON_COLORS": "0"}
    for command in COMMANDS:
        words = " ".join(["nmoe", *command])
        shown = subprocess.run(
            [sys.executable, "-c", "from nmoe_flower.cli import main; main()", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout
        lines += ["", f"## {words}", "", "```text", shown.strip(), "```"]
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


def error_tree() -> str:
    """The error tree, from its docstring, and each error's own text."""
    lines = ["# Errors", "", "```text", str(inspect.getdoc(errors)), "```", ""]
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
    lines += [f"- `{c.__name__}`: {inspect.getdoc(c)}" for c in classes]
    return "\n".join(lines) + "\n"


# --- Python reference ---


def public_modules() -> list[str]:
    """Packages and modules whose ``__all__`` is an interface: top level, not inside a package."""
    found = ["nmoe_flower"]
    found += [f"nmoe_flower.{info.name}" for info in pkgutil.iter_modules(nmoe_flower.__path__)]
    return [name for name in found if name not in SKIPPED]


def python_reference() -> tuple[str, list[str]]:
    """The page, and every public name that has no text."""
    lines = [
        "# Python",
        "",
        "Every public name, from its docstring. Shapes: B batch, D latent, E experts, K top-k, "
        "C classes, N samples, m clients.",
    ]
    silent = []
    for module_name in public_modules():
        module = importlib.import_module(module_name)
        names = list(getattr(module, "__all__", ())) or _defined(module)
        if not names:
            continue
        lines += ["", f"## {module_name}", "", *_markdown(inspect.getdoc(module) or "")]
        if not module.__doc__:
            silent.append(module_name)
        for name in names:
            value = getattr(module, name)
            text, complete = _entry(module_name, name, value)
            lines += ["", *text]
            if not complete:
                silent.append(f"{module_name}.{name}")
    return "\n".join(lines) + "\n", silent


def _defined(module: ModuleType) -> list[str]:
    """Public functions and classes of a module without ``__all__``."""
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    )


def _entry(module_name: str, name: str, value: Any) -> tuple[list[str], bool]:
    heading = f"### {module_name.removeprefix('nmoe_flower.')}.{name}"
    if not (inspect.isclass(value) or callable(value)):
        return [heading, "", f"`{name} = {_shortened(repr(value))}`"], True
    if not (inspect.isclass(value) or inspect.isfunction(value)):  # an alias of types
        return [heading, "", f"`{name} = {_shortened(repr(value))}`"], True
    text = inspect.getdoc(value) or ""
    lines = [heading, "", "```python", _signature(name, value), "```", "", *_markdown(text)]
    if inspect.isclass(value):
        for method, function in _methods(value):
            about = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
            call = " ".join(_parameters(function).split())
            lines.append(f"- `{method}{call}`: {_code(about)}")
    return lines, bool(text)


def _methods(owner: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(owner).items():
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        if not name.startswith("_") and inspect.isfunction(value):
            yield name, value


def _signature(name: str, value: Any) -> str:
    return f"{'class ' if inspect.isclass(value) else ''}{name}{_parameters(value)}"


def _parameters(value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    text = str(signature)
    for noise in ("collections.abc.", "numpy.typing.", "pathlib.", "typing.", "torch._tensor."):
        text = text.replace(noise, "")
    text = re.sub(r"nmoe_flower\.[\w.]+\.(\w+)", r"\1", text)
    text = re.sub(r"<object object at \w+>|<factory>", "...", text)
    if len(text) > 88 and not get_origin(value):
        text = re.sub(r", (?=(?:\*+)?\w+(?::|,|\)|=))", ",\n    ", text)
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations kept as text


def _shortened(text: str) -> str:
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return text if len(text) <= 200 else text[:197] + "..."


def _markdown(docstring: str) -> list[str]:
    """A Google docstring as Markdown: sections become lists, examples become code."""
    lines: list[str] = []
    section, example, literal = "", False, False
    for raw in docstring.splitlines():
        title = raw.strip().removesuffix(":")
        indent = len(raw) - len(raw.lstrip())
        if literal and (indent or not raw.strip()):
            lines.append(raw)
            continue
        literal = False
        if example and not raw.strip():
            lines.append("```")
            example = False
        if raw.strip() == "::":
            literal = True
            continue
        if raw.endswith(":") and not indent and title in SECTIONS:
            section = title
            lines += ["", f"**{title}**", ""]
            continue
        text = raw.strip()
        if text.startswith(">>>") and not example:
            lines += ["", "```python"]
            example = True
        if example:
            lines.append(text if text.startswith((">>>", "...")) else raw[4 * bool(section) :])
            continue
        if section in ("Args", "Attributes", "Raises") and indent == 4:
            item = re.match(r"(\*{0,2}[\w.]+)( \([^)]*\))?: (.*)", text)
            text = f"- `{item[1]}`: {_code(item[3])}" if item else f"- {_code(text)}"
            lines.append(text)
            continue
        if not indent:
            section = "" if text and not raw.startswith(" ") else section
        if text.endswith("::"):
            text, literal = text[:-1], True
        lines.append(f"    {_code(text)}" if indent > 4 and section else _code(text))
    if example:
        lines.append("```")
    return [*lines, ""]


def _code(text: str) -> str:
    """``x`` of reStructuredText as `x`; pointers to names as names."""
    return re.sub(r":\w+:`([^`]*)`", r"`\1`", text.replace("``", "`"))


# --- the site ---


def assemble(target: Path) -> list[str]:
    """Copy docs/ to ``target``, add the generated pages; return public names without a text."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(DOCS, target)
    _bring_results(target)
    reference = target / "reference"
    (reference / "configuration.md").write_text(configuration(), encoding="utf-8")
    (reference / "cli.md").write_text(command_line(), encoding="utf-8")
    (reference / "errors.md").write_text(error_tree(), encoding="utf-8")
    page, silent = python_reference()
    (reference / "python.md").write_text(page, encoding="utf-8")
    return silent


def _bring_results(target: Path) -> None:
    """The result files stand beside docs/; on the site they stand in it, one folder less away."""
    shutil.copytree(ROOT / "results", target / "results")
    for page in target.rglob("*.md"):
        up = "../" * len(page.relative_to(target).parts)
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(f"]({up}results/", f"]({up[3:]}results/"), encoding="utf-8")


def build() -> int:
    """Build build/site; returns the exit code."""
    if CONFIGURATION.read_text(encoding="utf-8") != configuration():
        print(f"{CONFIGURATION} is out of date: run scripts/docs --write", file=sys.stderr)
        return 1
    silent = assemble(SOURCE)
    if silent:
        print(f"public names without a docstring: {', '.join(silent)}", file=sys.stderr)
        return 1
    from pygments.formatters import HtmlFormatter

    css = HtmlFormatter(style="default").get_style_defs(".codehilite")
    (SOURCE / "stylesheets" / "code.css").write_text(css, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--clean", "--strict", "--quiet"]
    environment = {**os.environ, "DISABLE_MKDOCS_2_WARNING": "true"}
    code = subprocess.run(command, cwd=ROOT, check=False, env=environment).returncode
    if code == 0:
        print(f"built {ROOT / 'build' / 'site' / 'index.html'}")
    return code


def main() -> int:
    """Build, or only rewrite what is committed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite the configuration page")
    if parser.parse_args().write:
        CONFIGURATION.write_text(configuration(), encoding="utf-8")
        return 0
    return build()


if __name__ == "__main__":
    raise SystemExit(main())

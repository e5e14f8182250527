"""What a text tells people to install: it exists where they stand, and is never a bare name."""

import ast
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower import installation
from nmoe_flower.installation import checkout, extra_requirements, install_hint

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nmoe_flower"


def installed(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    """As after ``pip install`` of a wheel."""

    class Installed(metadata.PathDistribution):
        def read_text(self, filename: Any) -> str | None:
            return None if url is None else json.dumps({"url": url})

        @property
        def requires(self) -> list[str] | None:
            return wanted

    real, wanted = metadata.distribution, metadata.requires("nmoe-flower")
    monkeypatch.setattr(installation, "_PACKAGE", Path("/usr/lib/python/nmoe_flower"))
    monkeypatch.setattr(
        metadata, "distribution",
        lambda name: Installed(Path("none")) if name == "nmoe-flower" else real(name),
    )  # fmt: skip


def test_in_a_checkout_its_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert checkout() == ROOT
    monkeypatch.chdir(ROOT)
    assert install_hint("report") == "pip install -e '.[report]'"
    monkeypatch.chdir(tmp_path)
    assert install_hint("data", "serve") == f"pip install -e '{ROOT}[data,serve]'"


def test_after_a_wheel_the_wheel_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "my wheels" / "nmoe_flower-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    installed(monkeypatch, wheel.as_uri())
    assert checkout() is None
    assert install_hint("report") == f"pip install 'nmoe-flower[report] @ {wheel.as_uri()}'"
    assert " " not in wheel.as_uri()


@pytest.mark.parametrize("url", [None, "file:///gone/nmoe.whl", "https://example.org/nmoe.whl"])
def test_without_the_wheel_the_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, url: str | None
) -> None:
    installed(monkeypatch, url)
    hint = install_hint("report")
    assert hint.startswith("pip install ")
    assert "matplotlib" in hint
    assert "nmoe-flower" not in hint


def test_an_extra_takes_in_what_it_is_made_of() -> None:
    names = [re.split(r"[\[<>=!~ ]", text)[0] for text in extra_requirements("simulation")]
    assert {"datasets", "flwr-datasets", "flwr"} <= set(names)
    assert "nmoe-flower" not in names
    assert extra_requirements("colour") == []


def test_no_text_of_ours_installs_the_bare_name() -> None:
    """The name is on no index: whoever takes it there could send code to every device."""
    bare = re.compile(r"""pip install[^\n]*?[\s'"]nmoe-flower(?!\[[\w,{}]*\] @)""")
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not bare.search(node.value), path
    assert bare.search("pip install 'nmoe-flower[report]'")
    assert bare.search('pip install --quiet "nmoe-flower==1"')
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    pages += (ROOT / "experiments").rglob("*.md")
    for page in pages:
        assert not bare.search(page.read_text(encoding="utf-8")), page

"""A page as HTML: one file, nothing loaded from elsewhere, and the same bytes for the same page.

Whatever a name holds is text: templates escape it, and the page's own policy lets no script run
but the one whose hash it names.
"""

import base64
import hashlib
import itertools
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmoe_flower.errors import NMoEError
from nmoe_flower.installation import install_hint
from nmoe_flower.report.html.parts import Page

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["markdown", "to_html"]

_TEMPLATES = Path(__file__).parent / "templates"


def to_html(page: Page) -> str:
    """The whole page.

    Raises:
        NMoEError: Jinja is missing.
    """
    try:
        environment = _environment()
    except ImportError:
        raise NMoEError(f"a report as HTML needs jinja2: {install_hint('report')}") from None
    from markupsafe import Markup

    style, script = (_own(name) for name in ("style.css", "page.js"))
    return environment.get_template("page.html").render(
        page=page,
        number=itertools.count(1).__next__,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def markdown(text: str) -> "Markup":
    """Markdown as HTML; tags in it are text, and links lead to the web alone.

    >>> markdown("*a* <b> [c](javascript:d)").strip()
    Markup('<p><em>a</em> &lt;b&gt; [c](javascript:d)</p>')
    """
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    return Markup(MarkdownIt("commonmark", {"html": False}).disable("image").render(text))


@cache
def _environment() -> "Environment":
    """The templates, compiled once per process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": _number, "json": _json}
    return environment


@cache
def _own(name: str) -> str:
    """A file of the page that is written into it as it is."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content security policy names an inline text that it allows."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _number(value: float) -> str:
    """A coordinate, as short as it can be.

    >>> _number(44.0), _number(12.345)
    ('44', '12.3')
    """
    return f"{value:.1f}".removesuffix(".0")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

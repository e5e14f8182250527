"""``nmoe infer --text``: a text in, a line of JSON or more text out."""

import argparse
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmoe_flower.arguments import Number, Whole
from nmoe_flower.errors import DataError

if TYPE_CHECKING:
    from nmoe_flower.inference import Generation, TextClient

__all__ = ["add_text", "run_text"]

_DEADLINE = 10.0


class _Text(argparse.Action):
    """``--text``, which stands for the images."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the text, and ask for no images."""
        setattr(namespace, self.dest, values)
        for action in parser._actions:
            if action.dest == "images":
                action.required = False


def add_text(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group(
        "text", "with the bundle of a language run, or of one that classified text"
    )
    group.add_argument(
        "--text", action=_Text, metavar="TEXT", help="to score, or to classify; -: from stdin"
    )
    group.add_argument(
        "--generate", type=Whole(1, 1 << 20), metavar="N", help="go on with it, N tokens at most"
    )
    group.add_argument(
        "--temperature", type=Number(0, 1000), metavar="T", help="0: the likeliest token (0)"
    )
    group.add_argument(
        "--seed", type=Whole(0, (1 << 63) - 1), metavar="N", help="of what is drawn (0)"
    )
    group.add_argument(
        "--prefix",
        type=Whole(1, 1 << 20),
        metavar="N",
        help="first tokens, not scored (text.prefix)",
    )
    group.add_argument(
        "--send", choices=("hidden", "tokens"), default="hidden",
        help="hidden states, or the text itself where query.send allows it (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--weights", type=Path, metavar="PATH", help="of the backbone, if not where the run had it"
    )


def run_text(args: argparse.Namespace) -> int:
    """Score the text, or go on with it."""
    from nmoe_flower.inference import TextClient

    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    text = _read(args.text)
    with TextClient.open(
        args.bundle,
        peers=args.peers,
        certificate=args.certificate,
        key=args.key,
        authority=args.authority,
        insecure=args.insecure,
        top_k=args.top_k,
        send=args.send,
        encoding=args.encoding or "float16",
        deadline=args.deadline or _DEADLINE,
        weights=str(args.weights or ""),
    ) as client:
        if args.generate is None:
            _score(client, text, args.prefix)
        else:
            _generate(client, text, args)
    return 0


def _read(text: str) -> str:
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"--text -: stdin is no UTF-8 from byte {error.start} on") from None


def _score(client: "TextClient", text: str, prefix: int | None) -> None:
    from nmoe_flower.files import to_json

    found = client.score(text, prefix=prefix)
    line = {
        "bits_per_byte": round(found.bits_per_byte, 4),
        "perplexity": round(found.perplexity, 3),
        "tokens": found.tokens,
        "bytes": found.bytes,
        "prefix": found.prefix,
        "experts": {str(e): round(share, 4) for e, share in found.experts.items()},
        "answered_by": found.answered_by,
        "fallback": found.fallback,
        "bytes_up": found.cost.up,
        "bytes_down": found.cost.down,
        "failures": dict(found.cost.failures),
        "ms": round(found.ms, 3),
    }
    print(to_json(line), flush=True)


def _generate(client: "TextClient", text: str, args: argparse.Namespace) -> None:
    """The text as it comes on standard output; what it took in a line of JSON on the other."""
    from nmoe_flower.files import to_json

    generation = client.generate(
        text, args.generate, temperature=args.temperature or 0.0, seed=args.seed or 0
    )
    for piece in generation:
        print(piece.text, end="", flush=True)
    print(flush=True)
    print(to_json(_facts(generation)), file=sys.stderr, flush=True)


def _facts(generation: "Generation") -> dict[str, Any]:
    pieces, ms = generation.pieces, sorted(generation.ms)
    experts = Counter(str(p.expert) if p.expert >= 0 else "shared" for p in pieces)
    return {
        "tokens": len(pieces),
        "experts": dict(experts),
        "peers": dict(Counter(piece.peer for piece in pieces)),
        "bytes_up": generation.cost.up,
        "bytes_down": generation.cost.down,
        "failures": dict(generation.cost.failures),
        "ms_per_token": round(ms[len(ms) // 2], 3) if ms else None,
    }

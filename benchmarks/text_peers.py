"""Measure text that is asked of a peer beside the same adapter on the same backbone at home.

A peer of this process listens on loopback, with a backbone and a thread of its own. Home and peer
take turns. Then several askers let the peer write at the same time; they share the other backbone,
so that with hidden states their own halves take turns, too. Text and adapters are made up: what is
measured does not depend on what they say.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.yardstick import columns, json_option, language_options, told, write_figures
from nmoe_flower.arguments import Parser, Whole
from nmoe_flower.backbone import configured_language
from nmoe_flower.config import Config
from nmoe_flower.data.text import configured_tokenizer
from nmoe_flower.inference import ExpertServer, PeerEntry, PeerList, TextClient, TextExperts
from nmoe_flower.inference.ask import LoopThread, Send, TextCost
from nmoe_flower.inference.bundle import Session, TextBundle, TextStep, Writing
from nmoe_flower.inference.protocol import Encoding
from nmoe_flower.models import split_lm, token_frequencies

__all__ = ["main"]

Ints = npt.NDArray[np.int64]
Figures = dict[str, Any]
_HOME, _PEER = 0, 1
_WAYS: tuple[tuple[Send, Encoding], ...] = (
    ("hidden", "float16"),
    ("hidden", "int8"),
    ("tokens", "float16"),
)
_HEADINGS = (
    "", "asked", "ms", "CPU ms", "home ms", "CPU ms", "home / asked", "of CPU", "bytes up", "down",
)  # fmt: skip
_TOGETHER = ("askers at once", "asked", "tokens a second", "of one asker")
_ASKERS = (1, 2, 4)
_SENTENCE = "The quick brown fox jumps over the lazy dog. "


class _Taken(NamedTuple):
    """Seconds of the clock and of the CPU."""

    clock: float
    cpu: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per way to ask; returns the exit code."""
    args = _parser().parse_args(argv)
    return told(lambda: _measure(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks.text_peers", description=__doc__)
    language_options(parser, batch=16, batch_of="scored")
    parser.add_argument("--window", type=Whole(8, 4096), default=128, help="tokens of each (128)")
    parser.add_argument("--tokens", type=Whole(1, 2048), default=32, help="written (32)")
    parser.add_argument("--rounds", type=Whole(1, 1000), default=7, help="of each side (7)")
    json_option(parser)
    return parser


def _measure(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        bundles, windows = _made_up(args, Path(scratch))
        home, there = map(TextExperts.open, bundles)
        ways: list[Figures] = []
        together: list[Figures] = []
        with _served(bundles[_PEER], there) as peers:
            for send, encoding in _WAYS:
                with TextClient(
                    bundles[_HOME], peers, experts=home, send=send, encoding=encoding
                ) as client:
                    called = send if send == "tokens" else f"{send} {encoding}"
                    ways += _asked_and_at_home(args, called, client, there, windows)
            for send in ("hidden", "tokens"):
                clients = partial(TextClient, bundles[_HOME], peers, experts=home, send=send)
                together += _together(args, send, clients, windows)
    print(f"{args.backbone}, rank {args.rank}; CPU of both sides")
    print(columns([_HEADINGS, *map(_row, ways)], left=(0, 1)))
    print(columns([_TOGETHER, *map(_row_together, together)], left=(0, 1)))
    write_figures(
        args.json,
        {"backbone": args.backbone, "rank": args.rank, "ways": ways, "together": together},
    )
    return 0


def _row(way: Figures) -> tuple[str, ...]:
    return (
        way["what"],
        way["asked"],
        *(f"{way[key]:.2f}" for key in ("ms", "cpu_ms", "home_ms", "home_cpu_ms", "x", "cpu_x")),
        *(f"{way[key]:,.0f}" for key in ("bytes_up", "bytes_down")),
    )


def _row_together(one: Figures) -> tuple[str, ...]:
    return str(one["askers"]), one["asked"], f"{one['rate']:.0f}", f"{one['of_one']:.2f}"


def _together(
    args: argparse.Namespace, send: str, connect: Callable[[], TextClient], windows: Ints
) -> Iterator[Figures]:
    """How many tokens a peer writes in a second for several askers."""
    alone = 0.0
    for count in _ASKERS:
        with ExitStack() as stack:
            clients = [stack.enter_context(connect()) for _ in range(count)]
            threads = stack.enter_context(ThreadPoolExecutor(count))
            text = _beginning(clients[0], windows)

            def write(
                clients: Sequence[TextClient] = clients,
                threads: Executor = threads,
                text: str = text,
            ) -> None:
                list(threads.map(lambda one: _asked(one, text, args.tokens), clients))

            write()
            seconds = statistics.median(_taken(write).clock for _ in range(args.rounds))
        rate = count * args.tokens / seconds
        alone = alone or rate
        yield {"askers": count, "asked": send, "rate": rate, "of_one": rate / alone}


def _beginning(client: TextClient, windows: Ints) -> str:
    """Half of a window as text."""
    tokens = windows[0, : windows.shape[1] // 2].tolist()
    return configured_tokenizer(client.bundle.config).decode(tokens)


def _asked_and_at_home(
    args: argparse.Namespace, called: str, client: TextClient, there: TextExperts, windows: Ints
) -> Iterator[Figures]:
    """What scoring takes per batch, and writing per token."""
    start = windows[0, : args.window // 2].tolist()
    text = _beginning(client, windows)

    def home(scoring: bool) -> None:
        if scoring:
            _score(there, windows)
        else:
            _write(there, start, args.tokens)

    def asked(scoring: bool) -> TextCost:
        if scoring:
            return client.score_windows(windows).cost
        return _asked(client, text, args.tokens)

    for scoring, unit in ((True, 1), (False, args.tokens)):
        cost = asked(scoring)
        assert not cost.failures
        here, away, ratios = _turns(partial(home, scoring), partial(asked, scoring), args.rounds)
        per_unit = 1000 / unit
        yield {
            "what": f"{len(windows)} windows of {args.window} scored"
            if scoring
            else "a token written",
            "asked": called,
            "ms": per_unit * away.clock,
            "cpu_ms": per_unit * away.cpu,
            "home_ms": per_unit * here.clock,
            "home_cpu_ms": per_unit * here.cpu,
            "x": ratios.clock,
            "cpu_x": ratios.cpu,
            "bytes_up": cost.up / unit,
            "bytes_down": cost.down / unit,
        }


def _score(experts: TextExperts, windows: Ints) -> None:
    """Score windows as a device does with its own expert."""
    final = experts.upper(_PEER, experts.lower(windows[:, :-1]))
    experts.losses(final, experts.offsets(_PEER), windows[:, 1:])


def _write(experts: TextExperts, tokens: list[int], count: int) -> None:
    """Go on with a text as a device does with its own expert."""
    session, new = Session(_PEER), list(tokens)
    for _ in range(count):
        [drawn] = experts.go_on([TextStep(session, np.array(new), Writing())])
        assert drawn is not None
        new = [drawn.token]


def _asked(client: TextClient, text: str, count: int) -> TextCost:
    """Have a peer go on with a text."""
    generation = client.generate(text, count)
    pieces = sum(1 for _ in generation)
    assert pieces == count
    return generation.cost


def _turns(
    home: Callable[[], object], peer: Callable[[], object], rounds: int
) -> tuple[_Taken, _Taken, _Taken]:
    """Median seconds at home and at the peer, and the medians of their quotients."""
    home()
    found = [(_taken(home), _taken(peer)) for _ in range(rounds)]
    quotients = [_Taken(a.clock / b.clock, a.cpu / b.cpu) for a, b in found]
    here, there = zip(*found, strict=True)
    return _medians(here), _medians(there), _medians(quotients)


def _medians(taken: Iterable[_Taken]) -> _Taken:
    return _Taken(*map(statistics.median, zip(*taken, strict=True)))


def _taken(work: Callable[[], object]) -> _Taken:
    began, used = time.perf_counter(), time.process_time()
    work()
    return _Taken(time.perf_counter() - began, time.process_time() - used)


@contextmanager
def _served(bundle: TextBundle, experts: TextExperts) -> Iterator[PeerList]:
    """A peer on loopback, and the list with it."""
    loop = LoopThread("benchmark-peer")

    async def start() -> ExpertServer:
        server = ExpertServer(bundle, None, load_text=lambda _: experts)
        await server.start()
        return server

    server = loop.submit(start()).result()
    try:
        yield PeerList((PeerEntry("peer", _PEER, f"127.0.0.1:{server.port}"),))
    finally:
        loop.submit(server.drain(0)).result()
        loop.close()


def _made_up(args: argparse.Namespace, folder: Path) -> tuple[list[TextBundle], Ints]:
    """Bundles of two devices with drawn adapters, and windows of the second one's text."""
    config = Config.parse(
        {
            "run.system": "language",
            "data.kind": "text",
            "data.dataset": "made-up",
            "data.scheme": "natural",
            "data.num-clients": 2,
            "text.tokenizer": "bytes" if args.backbone == "small-lm" else "",
            "text.window": max(args.window, args.window // 2 + args.tokens),
            "text.prefix": 4,
            "extractor.method": "pretrained",
            "extractor.backbone": args.backbone,
            "adapter.rank": args.rank,
            "gate.methods": "unigram",
            "query.send": "tokens",
        }
    )
    tokenizer = configured_tokenizer(config)
    wanted = args.batch * args.window
    tokens = np.array(tokenizer.encode(_SENTENCE * wanted)[:wanted])
    counts = np.bincount(tokens, minlength=tokenizer.vocab_size)
    model, digest = configured_language(config, tokenizer.vocab_size)
    draw = np.random.default_rng(0)
    adapters = []
    for _ in range(2):
        parts = {name: part.numpy() for name, part in model.fresh(args.rank).items()}
        drawn = {n: draw.normal(0, 0.01, p.shape).astype(np.float32) for n, p in parts.items()}
        drawn["bias"][tokenizer.end] = -100.0  # so that no text ends
        adapters.append(drawn | {"backbone": np.frombuffer(digest, np.uint8)})
    bundles = [
        TextBundle.write(
            folder / str(device),
            config=config,
            frequencies=np.stack([token_frequencies(0 * counts), token_frequencies(counts)]),
            adapters={device: adapters[device]},
            shared=None,
            partition=device,
            backbone=digest.hex(),
            tokenizer=tokenizer.hash,
            vocab_size=len(model.bias),
            width=split_lm(model).width,
            gate="unigram",
            holders=[[_HOME], [_PEER]],
        )
        for device in (_HOME, _PEER)
    ]
    return bundles, tokens.reshape(args.batch, args.window)


if __name__ == "__main__":
    sys.exit(main())

"""``nmoe bench``: says where the benchmarks are; they measure the code, and are not installed."""

import argparse

__all__ = ["ABOUT", "BENCHMARKS", "add_arguments"]

ABOUT = "where the benchmarks are"

BENCHMARKS = {
    "rounds": "a round of each engine beside bare PyTorch, Flower's own and pfl",
    "systems": "a round of published systems beside the same by hand",
    "fedsc": "a round of FedSC beside one by hand",
    "sums": "sums over latents at a client, on the wire, at the server",
    "precision": "steps in float32 and in bfloat16",
    "stack": "clients that train together, beside one after the other",
    "adding": "how much of a round adding up is",
    "growth": "a whole run as clients become more",
    "shortlist": "stage 3 per client, against their number",
    "adapters": "a step of an adapter, and texts scored by eight, beside peft",
    "align": "how fast policies assign, and how well",
    "nearest": "the best of N embeddings, beside three libraries",
    "network": "how experts are found among many that come and go",
    "infer": "a peer that answers, beside three yardsticks",
    "text_peers": "text scored and written by a peer, beside home",
    "peers": "a signed list of many peers, read, checked and routed by",
    "study": "a look at a study of 200 runs",
    "sizes": "what a device needs: installed sizes, memory of training",
}
"""What is measured, by the module of ``benchmarks`` that does it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whatever is measured is measured from a checkout; the command only says so."""
    width = max(map(len, BENCHMARKS))
    lines = "\n".join(f"  {name:<{width}}  {about}" for name, about in BENCHMARKS.items())
    parser.description = (
        "Say where the benchmarks are: beside the package, in a checkout, and not installed."
    )
    parser.epilog = f"python -m benchmarks.WHAT --help, in a checkout:\n{lines}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "what", nargs="?", choices=tuple(BENCHMARKS), metavar="WHAT", help="one of those below"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")

    def command(args: argparse.Namespace) -> int:
        if args.what is not None:
            parser.error(
                "benchmarks are not installed; in a checkout: "
                f"python -m benchmarks.{args.what} (docs/how-to/benchmarks.md)"
            )
        parser.print_help()
        return 0

    parser.set_defaults(command=command)

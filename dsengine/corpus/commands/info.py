"""What a corpus holds."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._terminal import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus info`."""
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--where", metavar="CONDITION", help='count the patches that meet it, such as "cloud < 0.4 and gap <= 3"')
    parser.add_argument("--json", action="store_true", help="all of it as one JSON object, for machines")


def run(args: argparse.Namespace) -> int:
    """`corpus info PATH`."""
    from dsengine.corpus import open_corpus
    from dsengine.corpus.report import print_info
    from dsengine.corpus.schema import SPLITS

    corpus = open_corpus(args.path)
    met = {name: len(corpus.rows(name, args.where)) for name in SPLITS} if args.where is not None else None
    if args.json:
        return _print_json(corpus, {} if met is None else {"where": {"condition": args.where, "splits": met}})
    print_info(corpus, console())
    if met is not None:
        counts = ", ".join(f"{name} {count:,} of {len(corpus.rows(name)):,}" for name, count in met.items())
        console().print(f"where {args.where}: {counts}", markup=False, soft_wrap=True)
    return 0


def _print_json(corpus: object, also: dict) -> int:
    import json

    from dsengine.corpus.facts import facts

    print(json.dumps({**facts(corpus), **also}, indent=1))
    return 0

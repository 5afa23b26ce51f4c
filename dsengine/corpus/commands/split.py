"""Part the patches of a corpus into train, val and test anew."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._splits import add_split_arguments, chosen_rule
from dsengine.corpus.commands._terminal import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus split`."""
    parser.add_argument("path", type=Path, metavar="PATH")
    add_split_arguments(parser, flag="--by", legal="block|random|column:NAME")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")


def run(args: argparse.Namespace) -> int:
    """`corpus split PATH --by ...`; without a flag it only reports what the split is worth."""
    from dsengine.corpus import Corpus, open_corpus
    from dsengine.corpus.leakage import leakage
    from dsengine.corpus.schema import SPLITS
    from dsengine.corpus.splits import resplit

    rule = chosen_rule(args, by="block")
    if rule is not None:
        resplit(open_corpus(args.path), rule, seed=args.seed)
    corpus, out = open_corpus(args.path), console()
    counts = ", ".join(f"{name} {len(corpus.rows(name)):,}" for name in SPLITS)
    by = corpus.attributes.get("splits", {}).get("by", "a rule that it does not state")  # as in corpora of earlier builds
    out.print(f"{corpus.path}: by {by}: {counts}", markup=False, soft_wrap=True)
    for name in SPLITS[1:] if isinstance(corpus, Corpus) else ():
        found = leakage(corpus, name)
        out.print(found.sentence() if found else f"{name}: no distance from train, one of them has no patch with a known place", markup=False, soft_wrap=True)
    return 0

"""Flags about train, val and test, shared by `corpus build` and `corpus split`."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from dsengine.errors import UsageError, nearest

if TYPE_CHECKING:
    from dsengine.corpus.build.grid import SplitRule
    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.build.series_plan import SeriesPlan

AnyPlan = TypeVar("AnyPlan", bound="Plan | SeriesPlan")


def add_split_arguments(parser: argparse.ArgumentParser, *, flag: str, legal: str) -> None:
    """`flag`, --fractions and --block-deg."""
    parser.add_argument(flag, dest="split", metavar=legal,
                        help="part into train, val and test by place, by patch, or by whole groups of equal value in an index column")
    parser.add_argument("--fractions", metavar="TRAIN,VAL,TEST", help="of the blocks, patches or groups (default: 0.8,0.1,0.1)")
    parser.add_argument("--block-deg", type=float, metavar="DEGREES", help="side of a block (default: 0.25, about 28 km)")


def chosen_rule(args: argparse.Namespace, *, by: str) -> "SplitRule | None":
    """The rule that the flags describe, `by` where they leave that open; None when no flag was given."""
    from dsengine.corpus.build.grid import BLOCK_DEG, FRACTIONS, SplitRule

    if args.split is None and args.fractions is None and args.block_deg is None:
        return None
    by = args.split or by
    if args.block_deg is not None and by != "block":
        raise UsageError(f"--block-deg is about blocks, the split is by {by}")
    if args.fractions is not None and by == "given":
        raise UsageError("--fractions: the split is given by the source; add --split block, random or column:NAME")
    fractions = FRACTIONS if args.fractions is None else _fractions(args.fractions)
    return SplitRule(by, fractions, BLOCK_DEG if args.block_deg is None else args.block_deg)


def with_split(plan: "AnyPlan", args: argparse.Namespace) -> "AnyPlan":
    """The plan of a build with the split that the flags ask for. UsageError when its source cannot give that."""
    from dsengine.corpus.build.grid import COLUMN, split_rule
    from dsengine.corpus.schema import INDEX_DTYPES

    own = split_rule(plan.split)
    rule = chosen_rule(args, by=own.by)
    if rule is None or rule == own:
        return plan
    if rule.by == "given":
        raise UsageError("--split given: the source has no split of its own; legal: block, random, column:NAME")
    legal = [*(name for name in INDEX_DTYPES if name not in ("id", "split")), *plan.columns]
    if rule.by.startswith(COLUMN) and rule.by.removeprefix(COLUMN) not in legal:
        raise UsageError(f"--split {rule.by}: no such index column; {nearest(rule.by.removeprefix(COLUMN), legal)}")
    return replace(plan, split=rule)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--fractions {text}: legal: three numbers such as 0.8,0.1,0.1") from None

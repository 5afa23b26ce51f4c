"""Linear probe of frozen features: logistic regression, its strength chosen on val."""

import argparse

from dsengine.evaluate.commands import _common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate linear`."""
    _common.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """`evaluate linear`."""
    from dsengine.evaluate import linear

    return _common.run(args, linear.evaluate, linear.Setting)

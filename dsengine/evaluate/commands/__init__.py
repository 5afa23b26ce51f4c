"""`dsengine evaluate ...`: one file a command; the file name is the command.

Each file's docstring is its help; `add_arguments(parser)` declares flags and `run(args)` returns the exit code. Nothing heavy is imported
before a command runs.
"""

import argparse
from importlib import import_module
from pkgutil import iter_modules


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `evaluate` with its commands."""
    evaluate = subparsers.add_parser("evaluate", help="judge pretrained encoders on labels")
    names = sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    commands = evaluate.add_subparsers(dest="evaluate_command", required=True, metavar="|".join(names))
    for name in names:
        module = import_module(f"{__name__}.{name}")
        summary = (module.__doc__ or "").partition("\n")[0].rstrip(".")
        parser = commands.add_parser(name, help=summary, description=summary + ".")
        module.add_arguments(parser)
        parser.set_defaults(run=module.run)

"""`dsengine corpus ...`: one file a command; the file name is the command.

Each file's docstring is its help; `add_arguments(parser)` declares flags and `run(args)` returns the exit code.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", argv: Sequence[str]) -> None:
    """Add `corpus` with its commands. `argv` is the whole command line: `build` has the flags of the source that it names."""
    corpus = subparsers.add_parser("corpus", help="make and inspect corpora")
    names = command_names()
    commands = corpus.add_subparsers(dest="corpus_command", required=True, metavar="|".join(names))
    for name in names:
        module = import_module(f"{__name__}.{name}")
        summary = (module.__doc__ or "").partition("\n")[0].rstrip(".")
        parser = commands.add_parser(name, help=summary, description=summary + ".")
        if name == "build":
            module.add_arguments(parser, argv)
        else:
            module.add_arguments(parser)
        parser.set_defaults(run=module.run)


def command_names() -> list[str]:
    """Names of the commands, sorted."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))

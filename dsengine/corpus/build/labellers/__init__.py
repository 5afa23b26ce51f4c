"""One file per kind of label source; the file name is the KIND of `corpus build --label NAME=KIND:PATH[,option=value...]`.

Each has `OPTIONS`, its options with one line of meaning each, and `labeller(name, path, options)`, which checks all it can and returns a
`_base.Labeller`. Files are opened in the process that reads them, and only what lies near a patch is read or looked up.
"""

from pkgutil import iter_modules


def kinds() -> list[str]:
    """The legal kinds."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))

"""One file per kind of input; the file name is what `corpus build --source` takes.

Each has `add_arguments(parser)` with its flags and `plan(args)`, which checks all it can and returns a `build.plan.Plan`; nothing is
written before. These files are imported to list flags, so what needs a heavy or optional package is imported inside functions.
"""

"""One file per kind of input; the file name is what `corpus build --source` takes."""

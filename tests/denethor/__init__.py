"""A small DENETHOR tile in both published layouts, and tests on it."""

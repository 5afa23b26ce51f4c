"""Triplet margin loss, pooled or per cell, negatives given or rolled out of the global batch."""

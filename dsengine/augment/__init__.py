"""Augmentation as data: what is drawn, and the one affine operator that carries it out."""

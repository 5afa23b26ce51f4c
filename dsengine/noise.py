"""Counter-based randomness: Philox4x32-10, so every draw is a function of its key and nothing else.

A draw depends on (seed, step or epoch, sample id, site, index) and never on batch size, worker, rank or restart.
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

"""What the synthetic pixels and series are made of through the year: mixtures of the endmembers of `spectra`, by class. Frozen with SERIES_VERSION."""

import numpy as np

# (class, endmember): leaf, dry, soil, water, roof, asphalt, snow, shade; each row sums to 1.
DORMANT = np.array([
    [0.00, 0.00, 0.02, 0.96, 0.00, 0.00, 0.00, 0.02],  # water
    [0.10, 0.45, 0.10, 0.00, 0.00, 0.00, 0.00, 0.35],  # broadleaf forest
    [0.45, 0.05, 0.05, 0.00, 0.00, 0.00, 0.00, 0.45],  # needleleaf forest
    [0.20, 0.55, 0.20, 0.00, 0.00, 0.00, 0.00, 0.05],  # grassland
    [0.05, 0.15, 0.75, 0.00, 0.00, 0.00, 0.00, 0.05],  # cropland
    [0.05, 0.05, 0.10, 0.00, 0.40, 0.35, 0.00, 0.05],  # built-up
    [0.00, 0.05, 0.88, 0.00, 0.00, 0.05, 0.00, 0.02],  # bare and rock
    [0.08, 0.40, 0.10, 0.37, 0.00, 0.00, 0.00, 0.05],  # wetland
    [0.00, 0.00, 0.05, 0.00, 0.00, 0.00, 0.93, 0.02],  # snow and ice
])
FULL_LEAF = np.array([
    [0.02, 0.00, 0.02, 0.94, 0.00, 0.00, 0.00, 0.02],
    [0.75, 0.02, 0.03, 0.00, 0.00, 0.00, 0.00, 0.20],
    [0.52, 0.03, 0.03, 0.00, 0.00, 0.00, 0.00, 0.42],
    [0.68, 0.17, 0.10, 0.00, 0.00, 0.00, 0.00, 0.05],
    [0.85, 0.02, 0.10, 0.00, 0.00, 0.00, 0.00, 0.03],
    [0.18, 0.02, 0.05, 0.00, 0.40, 0.32, 0.00, 0.03],
    [0.03, 0.09, 0.82, 0.00, 0.00, 0.05, 0.00, 0.01],
    [0.45, 0.10, 0.05, 0.35, 0.00, 0.00, 0.00, 0.05],
    [0.00, 0.02, 0.40, 0.00, 0.00, 0.00, 0.53, 0.05],
])
# Day of the year in full leaf, how far a row's may lie from it, and days from there to dormancy.
PEAK = np.array([200.0, 205.0, 200.0, 170.0, 165.0, 200.0, 150.0, 210.0, 215.0])
PEAK_SPREAD = np.array([15.0, 15.0, 20.0, 25.0, 45.0, 20.0, 30.0, 20.0, 15.0])
HALF_SEASON = np.array([90.0, 110.0, 150.0, 150.0, 70.0, 120.0, 80.0, 110.0, 70.0])

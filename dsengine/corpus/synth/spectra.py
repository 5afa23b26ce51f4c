"""What the world's surfaces look like: endmember spectra, radar backscatter, classes. Frozen with WORLD_VERSION.

Reflectances are typical Sentinel-2 L2A values of the 12 bands B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12; backscatter is
sigma0 in dB at about 39 degrees of incidence. A pixel is a mixture of endmembers; a class is a recipe for mixtures.
"""

import numpy as np

CLASSES = {0: "water", 1: "broadleaf forest", 2: "needleleaf forest", 3: "grassland", 4: "cropland", 5: "built-up",
           6: "bare and rock", 7: "wetland", 8: "snow and ice"}
WATER, BROADLEAF, NEEDLELEAF, GRASS, CROP, BUILT, BARE, WETLAND, SNOW = CLASSES

ENDMEMBERS = ("leaf", "dry", "soil", "water", "roof", "asphalt", "snow", "shade")
LEAF, DRY, SOIL, OPEN_WATER, ROOF, ASPHALT, WHITE, SHADE = range(len(ENDMEMBERS))

# (endmember, band) reflectance
SPECTRA = np.array([
    [0.020, 0.025, 0.065, 0.030, 0.100, 0.320, 0.410, 0.430, 0.450, 0.450, 0.190, 0.085],
    [0.050, 0.065, 0.105, 0.140, 0.180, 0.225, 0.250, 0.270, 0.290, 0.300, 0.330, 0.230],
    [0.070, 0.085, 0.125, 0.170, 0.195, 0.215, 0.230, 0.245, 0.260, 0.270, 0.340, 0.290],
    [0.060, 0.055, 0.050, 0.030, 0.026, 0.020, 0.018, 0.016, 0.014, 0.012, 0.007, 0.005],
    [0.160, 0.185, 0.215, 0.235, 0.245, 0.255, 0.265, 0.275, 0.280, 0.280, 0.290, 0.265],
    [0.080, 0.090, 0.100, 0.110, 0.115, 0.120, 0.125, 0.130, 0.135, 0.140, 0.155, 0.145],
    [0.900, 0.920, 0.920, 0.910, 0.900, 0.890, 0.880, 0.860, 0.840, 0.700, 0.110, 0.090],
    [0.015, 0.014, 0.016, 0.013, 0.020, 0.050, 0.062, 0.065, 0.068, 0.068, 0.030, 0.014],
], dtype=np.float32)
CLOUD = np.array([0.55, 0.56, 0.55, 0.56, 0.57, 0.59, 0.60, 0.61, 0.62, 0.50, 0.42, 0.33], dtype=np.float32)
HAZE = np.array([0.050, 0.038, 0.024, 0.015, 0.012, 0.009, 0.008, 0.007, 0.006, 0.005, 0.002, 0.001], dtype=np.float32)
PIXELS = np.array([6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 2, 2])  # ground resolution of each band in units of 10 m

# (endmember, VV VH) sigma0, dB
BACKSCATTER_DB = np.array([
    [-9.5, -15.0], [-12.0, -18.5], [-12.5, -20.5], [-19.0, -27.0], [-7.0, -14.0], [-15.5, -23.0], [-12.5, -19.5], [-9.0, -14.5],
])
# Linear power, rounded so that no machine's pow() shows in a patch.
BACKSCATTER = np.round(10.0 ** (BACKSCATTER_DB / 10), 6).astype(np.float32)

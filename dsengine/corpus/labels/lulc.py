"""Land use and land cover in ten classes, values as in the TerraMesh LULC rasters (Esri / Impact Observatory classes, renumbered).

The rasters carry no names; 1..7 and 9 were read off imagery, 8 follows from the order of the parent product.
"""

CLASSES = {0: "no data", 1: "water", 2: "trees", 3: "flooded vegetation", 4: "crops", 5: "built area", 6: "bare ground",
           7: "snow and ice", 8: "clouds", 9: "rangeland"}
IGNORE = 0

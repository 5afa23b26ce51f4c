"""ESA WorldCover 10 m, values as in its rasters."""

CLASSES = {10: "tree cover", 20: "shrubland", 30: "grassland", 40: "cropland", 50: "built-up", 60: "bare / sparse vegetation",
           70: "snow and ice", 80: "permanent water bodies", 90: "herbaceous wetland", 95: "mangroves", 100: "moss and lichen"}
IGNORE = 0

"""CORINE Land Cover: 44 classes in three levels by three-digit code, the 48 values of its rasters, and the paper's seven groups.

Vector releases carry the code ("311"), rasters either the code or its position in `INDEX_CODES`. A `legend` says which label value
each code gets; class names are those of the CORINE nomenclature.
"""

from typing import NamedTuple

LEVEL_1 = {1: "artificial surfaces", 2: "agricultural areas", 3: "forest and semi-natural areas", 4: "wetlands", 5: "water bodies"}
LEVEL_2 = {
    11: "urban fabric", 12: "industrial, commercial and transport units", 13: "mine, dump and construction sites",
    14: "artificial, non-agricultural vegetated areas", 21: "arable land", 22: "permanent crops", 23: "pastures",
    24: "heterogeneous agricultural areas", 31: "forests", 32: "scrub and/or herbaceous vegetation associations",
    33: "open spaces with little or no vegetation", 41: "inland wetlands", 42: "maritime wetlands", 51: "inland waters", 52: "marine waters"}
LEVEL_3 = {
    111: "continuous urban fabric", 112: "discontinuous urban fabric", 121: "industrial or commercial units",
    122: "road and rail networks and associated land", 123: "port areas", 124: "airports", 131: "mineral extraction sites", 132: "dump sites",
    133: "construction sites", 141: "green urban areas", 142: "sport and leisure facilities", 211: "non-irrigated arable land",
    212: "permanently irrigated land", 213: "rice fields", 221: "vineyards", 222: "fruit trees and berry plantations", 223: "olive groves",
    231: "pastures", 241: "annual crops associated with permanent crops", 242: "complex cultivation patterns",
    243: "land principally occupied by agriculture, with significant areas of natural vegetation", 244: "agro-forestry areas",
    311: "broad-leaved forest", 312: "coniferous forest", 313: "mixed forest", 321: "natural grasslands", 322: "moors and heathland",
    323: "sclerophyllous vegetation", 324: "transitional woodland-shrub", 331: "beaches, dunes, sands", 332: "bare rocks",
    333: "sparsely vegetated areas", 334: "burnt areas", 335: "glaciers and perpetual snow", 411: "inland marshes", 412: "peat bogs",
    421: "salt marshes", 422: "salines", 423: "intertidal flats", 511: "water courses", 512: "water bodies", 521: "coastal lagoons",
    522: "estuaries", 523: "sea and ocean"}

CLASSES = LEVEL_3
IGNORE = 0

# Position = value of a raster by index; the last four are the product's own extra codes.
INDEX_CODES = ("000", *map(str, LEVEL_3), "999", "002", "005", "001")
NODATA_CODES = ("000", "001")
_EXTRA = {45: "999 no data", 46: "unclassified land", 47: "unclassified water"}


class Legend(NamedTuple):
    """What the pixels of a label say. `values` has one entry a code; codes of no data have none and become `ignore`."""

    classes: dict[int, str]
    ignore: int
    dtype: str
    values: dict[str, int]


def legend(level: str) -> Legend | None:
    """The legend called `level`, one of `LEVELS`, or None.

    0 and 1 are the five classes of the first digit; 2 has 15 and 3 has 44 classes, whose values are the digits of the code. In those 0 is
    ignored, and with it everything that is not land cover: codes 0xx and 999. `groups` is the first digit of every code, the seven groups of
    the paper: 0 unclassified (002, 005), 1..5, 9 (999), with 255 ignored. `index` is the position in `INDEX_CODES`, 0..47, with 0 ignored.
    """
    if level in ("0", "1"):
        return Legend(LEVEL_1, 0, "uint8", {str(code): code // 100 for code in LEVEL_3})
    if level == "2":
        return Legend(LEVEL_2, 0, "uint8", {str(code): code // 10 for code in LEVEL_3})
    if level == "3":
        return Legend(LEVEL_3, 0, "uint16", {str(code): code for code in LEVEL_3})
    land_cover = [code for code in INDEX_CODES if code not in NODATA_CODES]
    if level == "groups":
        return Legend({0: "unclassified", **LEVEL_1, 9: "999 no data"}, 255, "uint8", {code: int(code[0]) for code in land_cover})
    if level == "index":
        names = {**dict(enumerate(LEVEL_3.values(), start=1)), **_EXTRA}
        return Legend(names, 0, "uint8", {code: INDEX_CODES.index(code) for code in land_cover})
    return None


LEVELS = ("0", "1", "2", "3", "groups", "index")

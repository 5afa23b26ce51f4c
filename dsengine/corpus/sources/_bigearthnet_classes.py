"""Class tables of BigEarthNet: 43 classes of CORINE 2018 level 3 as release 1.0 names them, and the 19 classes they are grouped into.

Eleven of the 43 belong to none of the 19. CORINE's 44th class, glaciers (335), is not among the 43 but may occur in a reference map.
"""

import numpy as np

# (CORINE code, name in the label lists of release 1.0, position of the class of 19 or None)
_LEVEL3 = (
    (111, "Continuous urban fabric", 0), (112, "Discontinuous urban fabric", 0), (121, "Industrial or commercial units", 1),
    (122, "Road and rail networks and associated land", None), (123, "Port areas", None), (124, "Airports", None),
    (131, "Mineral extraction sites", None), (132, "Dump sites", None), (133, "Construction sites", None),
    (141, "Green urban areas", None), (142, "Sport and leisure facilities", None),
    (211, "Non-irrigated arable land", 2), (212, "Permanently irrigated land", 2), (213, "Rice fields", 2),
    (221, "Vineyards", 3), (222, "Fruit trees and berry plantations", 3), (223, "Olive groves", 3), (231, "Pastures", 4),
    (241, "Annual crops associated with permanent crops", 3), (242, "Complex cultivation patterns", 5),
    (243, "Land principally occupied by agriculture, with significant areas of natural vegetation", 6), (244, "Agro-forestry areas", 7),
    (311, "Broad-leaved forest", 8), (312, "Coniferous forest", 9), (313, "Mixed forest", 10),
    (321, "Natural grassland", 11), (322, "Moors and heathland", 12), (323, "Sclerophyllous vegetation", 12),
    (324, "Transitional woodland/shrub", 13), (331, "Beaches, dunes, sands", 14), (332, "Bare rock", None),
    (333, "Sparsely vegetated areas", 11), (334, "Burnt areas", None),
    (411, "Inland marshes", 15), (412, "Peatbogs", 15), (421, "Salt marshes", 16), (422, "Salines", 16), (423, "Intertidal flats", None),
    (511, "Water courses", 17), (512, "Water bodies", 17), (521, "Coastal lagoons", 18), (522, "Estuaries", 18), (523, "Sea and ocean", 18),
)
GLACIERS = 335
NAMES_43 = tuple(name for _, name, _ in _LEVEL3)
NAMES_19 = (
    "Urban fabric", "Industrial or commercial units", "Arable land", "Permanent crops", "Pastures", "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation", "Agro-forestry areas", "Broad-leaved forest",
    "Coniferous forest", "Mixed forest", "Natural grassland and sparsely vegetated areas", "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub", "Beaches, dunes, sands", "Inland wetlands", "Coastal wetlands", "Inland waters", "Marine waters")
TO_19 = {name: group for _, name, group in _LEVEL3}
CODES = {code: name for code, name, _ in _LEVEL3} | {GLACIERS: "Glaciers and perpetual snow"}
MAP_NODATA = 0  # in reference maps
IGNORE_19 = 255  # in a map of the 19 classes: no data, or a class that belongs to none


def many_hot(names: list[str], *, classes: int) -> np.ndarray:
    """(classes,) uint8 of a patch's label list. Names of the 43 become their group when `classes` is 19; those without one are left out.

    Raises KeyError with the name that is in neither table.
    """
    hot = np.zeros(classes, np.uint8)
    for name in names:
        if classes == 43:
            hot[_POSITION_43[name]] = 1
        elif (group := _POSITION_19[name]) is not None:
            hot[group] = 1
    return hot


def map_to_19(codes: np.ndarray) -> np.ndarray:
    """uint8 positions in the 19 classes of a map of CORINE codes (values of `CODES` or 0), 255 where there is none."""
    table = np.full(max(CODES) + 1, IGNORE_19, np.uint8)
    for code, _, group in _LEVEL3:
        table[code] = IGNORE_19 if group is None else group
    return table[codes]


_POSITION_43 = {name: position for position, name in enumerate(NAMES_43)}
_POSITION_19: dict[str, int | None] = {**TO_19, **{name: position for position, name in enumerate(NAMES_19)}}

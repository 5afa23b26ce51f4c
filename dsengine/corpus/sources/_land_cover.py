"""Class tables of the land-cover layers of SEN12MS and DFC2020, and how they map onto one another.

IGBP and the three LCCS layers are those of the MODIS product MCD12Q1, version 6. 0 is not in its legends and 255 is its fill value.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dsengine.corpus.schema import LabelSpec
from dsengine.errors import RunError

IGNORE = 255
IGBP = {
    1: "evergreen needleleaf forest", 2: "evergreen broadleaf forest", 3: "deciduous needleleaf forest", 4: "deciduous broadleaf forest",
    5: "mixed forest", 6: "closed shrubland", 7: "open shrubland", 8: "woody savanna", 9: "savanna", 10: "grassland", 11: "permanent wetland",
    12: "cropland", 13: "urban and built-up", 14: "cropland and natural vegetation mosaic", 15: "permanent snow and ice", 16: "barren", 17: "water"}
LCCS_LC = {
    1: "barren", 2: "permanent snow and ice", 3: "water", 11: "evergreen needleleaf forest", 12: "evergreen broadleaf forest",
    13: "deciduous needleleaf forest", 14: "deciduous broadleaf forest", 15: "mixed broadleaf and needleleaf forest",
    16: "mixed evergreen and deciduous broadleaf forest", 21: "open forest", 22: "sparse forest", 31: "dense herbaceous", 32: "sparse herbaceous",
    41: "dense shrubland", 42: "shrubland and grassland mosaic", 43: "sparse shrubland"}
LCCS_LU = {
    1: "barren", 2: "permanent snow and ice", 3: "water", 9: "urban and built-up", 10: "dense forest", 20: "open forest",
    25: "forest and cropland mosaic", 30: "natural herbaceous", 35: "natural herbaceous and cropland mosaic", 36: "herbaceous cropland",
    40: "shrubland"}
LCCS_SH = {
    1: "barren", 2: "permanent snow and ice", 3: "water", 10: "dense forest", 20: "open forest", 27: "woody wetland", 30: "grassland",
    40: "shrubland", 50: "herbaceous wetland", 51: "tundra"}
DFC = {1: "forest", 2: "shrubland", 3: "savanna", 4: "grassland", 5: "wetland", 6: "cropland", 7: "urban", 8: "snow and ice", 9: "barren",
       10: "water"}
DFC_OF_IGBP = (0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10)  # position: IGBP value 0..17
DROPPED_OF_8 = (3, 8)  # savanna and snow: not in the 8 classes that most work on DFC2020 uses


@dataclass(frozen=True)
class Layer:
    """One band of a label file and the class map that it becomes."""

    spec: LabelSpec
    part: str  # lc or dfc
    band: int  # from 1
    becomes: Mapping[int, int]  # every legal value of the file -> stored value

    def read(self, raw_HW: np.ndarray, path: str) -> np.ndarray:
        """(H, W) uint8. Raises RunError naming file and values where the file has a value without a class."""
        values, inverse = np.unique(raw_HW, return_inverse=True)
        if unknown := [value for value in values.tolist() if value not in self.becomes]:
            raise RunError(f"{path} band {self.band} ({self.spec.name}) has value {', '.join(map(str, unknown[:5]))}; "
                           f"legal: {', '.join(map(str, self.becomes))}")
        return np.array([self.becomes[value] for value in values.tolist()], np.uint8)[inverse].reshape(raw_HW.shape)


def layer(name: str, classes: Mapping[int, str], *, part: str, band: int = 1) -> Layer:
    """Values as they are; 0 and 255 become 255, ignored."""
    return mapped(name, classes, {value: value for value in classes}, part=part, band=band)


def mapped(name: str, classes: Mapping[int, str], becomes: Mapping[int, int], *, part: str, band: int = 1) -> Layer:
    """Values through `becomes`; 0, 255 and what becomes a value outside `classes` are 255, ignored."""
    full = {value: new if new in classes else IGNORE for value, new in {0: IGNORE, **becomes, IGNORE: IGNORE}.items()}
    return Layer(LabelSpec(name=name, kind="classmap", classes=dict(classes), ignore=IGNORE), part, band, full)

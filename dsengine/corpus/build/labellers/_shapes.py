"""A class map from the shapes of one layer with a class column."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsengine.corpus.build.labellers._base import Drawn, Labeller
from dsengine.corpus.build.labellers._burn import boxes, burn, make_valid, to_grid, widen
from dsengine.corpus.build.labellers._layers import Features, Layer, near
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.schema import LabelSpec
from dsengine.errors import RunError


@dataclass(frozen=True, kw_only=True)
class ShapeLabeller(Labeller):
    """Draws the shapes near a patch in order of their feature ids."""

    spec: LabelSpec
    layer: Layer
    column: str
    values: Mapping[str, int]  # class_key of the column -> label value
    known: frozenset[str]  # keys that are legal without a value: they are drawn as `fill`
    fill: int  # value of pixels in no shape
    buffer_m: float = 0.0
    all_touched: bool = False
    others_ignored: bool = False  # keys that are not legal are left out instead of an error

    def draw(self, grid: Grid) -> Drawn:
        out = np.full((grid.size, grid.size), self.fill, self.spec.dtype)
        repaired: list[int] = []
        for box in boxes(grid, self.layer.crs, margin_m=self.buffer_m):
            features = near(self.layer, box, (self.column,))
            drawn, values = self._legal(features)
            geometries, broken = make_valid(features.geometries[drawn])
            repaired += features.ids[drawn][broken].tolist()
            burn(out, widen(to_grid(geometries, box, self.layer.crs, grid), self.buffer_m), values, grid, all_touched=self.all_touched)
        return Drawn(out, tuple(f"{self.layer.path} layer {self.layer.name}: invalid shape {fid} repaired" for fid in repaired))

    def _legal(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        """Rows to draw, and their label values."""
        keys = [class_key(value) for value in features.columns[self.column]]
        legal = [key in self.values or key in self.known for key in keys]
        if not (all(legal) or self.others_ignored):
            row = legal.index(False)
            raise RunError(f"{self.layer.path} layer {self.layer.name}: column {self.column} of feature {features.ids[row]} holds {keys[row]!r}; "
                           f"legal: {', '.join(self.values)}; others=ignore leaves such shapes out")
        rows = np.flatnonzero(legal)
        return rows, np.array([self.values.get(keys[row], self.fill) for row in rows], self.spec.dtype)


def class_key(value: Any) -> str:
    """A class as text, equal for 311, 311.0 and "311"; empty for null."""
    if value is None or value != value:
        return ""
    if isinstance(value, str):
        return value.strip()
    return str(int(value)) if float(value).is_integer() else str(value)

"""What BYOL, SimSiam and SimCLR show their encoder: two views of a place, augmented each on its own; no method by itself.

Source: the third paper (Jain et al., "Multimodal contrastive learning for remote sensing tasks", 2022) flips, blurs, rotates and
crop-resizes both views, one a random band of Sentinel-2, the other one of Sentinel-1. It gives no strengths and its code was not found;
ours are SimSiam's, but for the colour jitter, of which a single band shows brightness and contrast alone. `second=neighbour` is not of
the paper: the second view is of a patch nearby, so that date, light and haze are not what the two have in common (Tile2Vec's neighbours;
Ayush et al., "Geography-aware self-supervised learning", ICCV 2021, take the same place at another date).
"""

from dataclasses import dataclass, replace
from typing import Literal

from dsengine.augment.params import Augment
from dsengine.data.sample import View
from dsengine.errors import UsageError
from dsengine.methods._legal import above_zero, untouched, within

MS_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")  # the ten bands of 10 and 20 m
SAR_BANDS = ("VV", "VH")


@dataclass(frozen=True, kw_only=True)
class TwoViews:
    """Settings of the two views; each method's Config begins with these."""

    pair: Literal["views", "bands"] = "views"  # all bands twice; or one random optical band against one random radar band
    second: Literal["itself", "neighbour"] = "itself"  # whose the second view is: the same patch's, or one's nearby (data.triples)
    scale_km: float = 18.2  # of the neighbour's distance: p ~ exp(-km / scale_km)
    crop_area: tuple[float, float] = (0.2, 1.0)  # share of the window that the crop-resize takes
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    dihedral: Literal["none", "shared", "independent"] = "independent"  # flips and quarter turns
    rotation: float = 0.0  # degrees, besides the quarter turns
    blur: float = 0.5  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    jitters: int = 0  # colour jitters per view, each on a random triple of bands
    jitter_strength: float = 0.2
    jitter_space: Literal["zscore", "physical"] = "zscore"
    band_dropout: float = 0.0  # probability, for each band on its own

    def __post_init__(self) -> None:
        if self.pair == "bands" and self.band_dropout:
            raise UsageError(f"band_dropout={self.band_dropout}: a view of one band has none to drop; legal with pair=bands: 0")
        above_zero(self, "scale_km")
        for name, most in (("jitters", 2**14), ("jitter_strength", 1), ("band_dropout", 1)):
            within(self, name, 0, most)
        if self.second == "itself":
            untouched(self, "scale_km", where="second=itself")
        self.views()  # checks the rest

    def views(self) -> tuple[View, View]:
        """The two views."""
        augment = Augment(
            crop_area=self.crop_area, crop_ratio=self.crop_ratio, dihedral=self.dihedral, rotation=self.rotation, blur=self.blur,
            blur_sigma=self.blur_sigma, jitters=(self.jitters, self.jitters), jitter_strength=(self.jitter_strength,) * 2, jitter_space=self.jitter_space,
            band_dropout=(self.band_dropout,) * 2)
        first, second = View(augment=augment), View(augment=augment, of=self.second, scale_km=self.scale_km)
        if self.pair == "bands":
            return replace(first, bands=MS_BANDS, draw_bands=1), replace(second, bands=SAR_BANDS, draw_bands=1)
        return first, second

    def shown(self) -> View:
        """What the encoder must be able to read: either view."""
        return View(bands=MS_BANDS + SAR_BANDS, draw_bands=1) if self.pair == "bands" else View()

"""Whether the digital numbers of a Sentinel-2 file carry the +1000 of processing baseline 04.00 and later.

An offset is what must be added to the stored number: -1000 or 0 (the BOA_ADD_OFFSET of the product metadata). Dates do not
decide: old scenes were reprocessed with the offset, and many distributors take it out of new ones.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsengine.corpus.build.plain_yaml import plain_yaml
from dsengine.errors import UsageError

BASELINE_OFFSET = -1000
# Pixels can prove that there is no offset: with one, a number below 700 is a surface reflectance below -0.03. Atmospheric
# correction of clear water and of shadow goes a little below zero, not that far on 2 % of a band.
DARK, DARK_FRACTION = 700, 0.02
# Pixels can show an offset: the darkest of nearly all bands, from blue to short-wave infrared, at one level just above 1000,
# under surfaces that are clearly brighter. Without an offset such a floor would be a reflectance of 0.09 to 0.13 in every
# band; haze lifts the blue and leaves water and vegetation dark in the infrared, and dark flat ground has no bright bands.
FLOOR_PERCENTILE, FLOOR, FLOOR_BANDS, CONTRAST = 0.1, (900, 1300), 0.75, 1000
_BASELINE_KEYS = ("PROCESSING_BASELINE", "S2:PROCESSING_BASELINE")
_OFFSET_KEYS = ("BOA_ADD_OFFSET", "S2:BOA_ADD_OFFSET")


class Decision(NamedTuple):
    """Offset to add, or None when it cannot be told, and why."""

    offset: int | None
    reason: str


def from_metadata(names: Sequence[str], tags: Mapping[str, str], *, scale: float, offset: float) -> Decision:
    """What product names, tags and the declared scale (reflectance per number) and offset (reflectance) of a file say."""
    if scale != 1.0 and offset != 0.0:
        return Decision(round(offset / scale), f"the file declares offset {offset:g} at scale {scale:g}")
    upper = {key.upper(): value for key, value in tags.items()}
    stated = {float(value) for key, value in upper.items() if key.startswith(_OFFSET_KEYS)}
    if len(stated) == 1:
        return Decision(int(stated.pop()), "tag BOA_ADD_OFFSET")
    baseline = next((upper[key] for key in _BASELINE_KEYS if key in upper), None)
    where = "tag processing baseline"
    if baseline is None:
        texts = [*names, upper.get("PRODUCT_URI", ""), upper.get("PRODUCT_ID", "")]
        found = next((m for text in texts if (m := re.search(r"MSIL2A_\d{8}T\d{6}_N(\d{2})(\d{2})_", text))), None)
        baseline, where = (f"{found[1]}.{found[2]}", "product name") if found else (None, "")
    try:
        number = float(baseline)
    except (TypeError, ValueError):
        return Decision(None, "no baseline or offset in the metadata")
    if number >= 90:  # N9999: reprocessed outside the operational chain
        return Decision(None, f"{where} {baseline} says nothing about the offset")
    return Decision(BASELINE_OFFSET if number >= 4 else 0, f"{where} {baseline}")


def from_pixels(sample: Mapping[str, np.ndarray]) -> Decision:
    """What the valid numbers of each band say; see the constants above."""
    sample = {band: values for band, values in sample.items() if values.size}
    if not sample:
        return Decision(None, "no valid pixel")
    dark = {band: float((values < DARK).mean()) for band, values in sample.items()}
    darkest = max(dark, key=dark.__getitem__)
    if dark[darkest] >= DARK_FRACTION:
        return Decision(0, f"pixels: {dark[darkest]:.1%} of {darkest} lie below {DARK}")
    floors = {band: float(np.percentile(values, FLOOR_PERCENTILE)) for band, values in sample.items()}
    flat = sum(FLOOR[0] <= floor <= FLOOR[1] for floor in floors.values())
    contrast = max(float(np.median(values)) for values in sample.values()) - min(floors.values())
    lowest = f"the darkest {FLOOR_PERCENTILE} % of {flat} of {len(floors)} bands end between {FLOOR[0]} and {FLOOR[1]}"
    if min(floors.values()) >= FLOOR[0] and flat >= FLOOR_BANDS * len(floors) and contrast >= CONTRAST:
        return Decision(BASELINE_OFFSET, f"pixels: {lowest}, under surfaces {contrast:.0f} brighter")
    return Decision(None, f"pixels: {dark[darkest]:.1%} of {darkest} below {DARK}, {lowest}: neither a floor near 1000 nor pixels far below it")


def decide(metadata: Decision, pixels: Decision) -> Decision:
    """Metadata first, unless the pixels prove it wrong; then the pixels."""
    if metadata.offset is None:
        return Decision(pixels.offset, f"{pixels.reason} ({metadata.reason})")
    if metadata.offset < 0 and pixels.offset == 0:
        return Decision(None, f"{metadata.reason} says {metadata.offset}, but {pixels.reason}")
    return metadata


def read_table(path: Path) -> dict[str, int]:
    """File stem -> offset from a YAML mapping (.yaml, .yml) or a CSV of two columns, with or without a heading."""
    try:
        text = path.read_text()
        if path.suffix.lower() in (".yaml", ".yml"):
            rows = list((plain_yaml(text) or {}).items())
        else:
            rows = [(row[0], row[1]) for row in csv.reader(text.splitlines()) if row and not row[0].lstrip().startswith("#")]
            rows = rows[1:] if rows and not is_number(rows[0][1]) else rows
        return {str(stem).strip(): int(str(value).strip()) for stem, value in rows}
    except (OSError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(f"--s2-offset {path}: not a table of file stem and offset ({error}); legal: auto, 0, -1000, or "
                         "a CSV with lines `stem,-1000`, or YAML with lines `stem: -1000`") from error


def is_number(text: str) -> bool:
    """Whether the text is a whole number."""
    return re.fullmatch(r"\s*[+-]?\d+\s*", text) is not None

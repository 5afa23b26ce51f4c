"""How the numbers of each site become stored values: S2 offsets decided for all sites before anything is written, S1 checked to be dB."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dsengine.corpus.build import offset
from dsengine.corpus.build.pairing import Layer, Site
from dsengine.corpus.build.raster import Radiometry, RasterInfo, sample, valid_mask
from dsengine.corpus.schema import S2_BANDS
from dsengine.errors import UsageError

S2_STORED, S1_STORED = 1e-4, 0.01  # reflectance and dB per stored unit
S2_NODATA = 0.0  # L2A products reserve the number 0


def s2_offsets(sites: Mapping[str, Site], choice: str, *, nodata: float | str | None) -> dict[str, offset.Decision]:
    """Offset and reason for each site. `choice` is auto, an integer, or a table file; UsageError names what stays undecided."""
    if choice == "auto":
        decided = {name: _auto(site["s2"], nodata) for name, site in sites.items()}
        if open_ones := {name: d.reason for name, d in decided.items() if d.offset is None}:
            why = "; ".join(f"{sites[name]['s2'].files[0].path}: {reason}" for name, reason in open_ones.items())
            raise UsageError(f"--s2-offset auto cannot tell for {len(open_ones)} of {len(sites)} sites ({why}). Legal: 0 or -1000 for all files, or "
                             f"a CSV with a line `stem,offset` for each file, such as `{next(iter(open_ones))},-1000`")
        return decided
    if offset.is_number(choice):
        return {name: offset.Decision(int(choice), f"--s2-offset {choice}") for name in sites}
    table = offset.read_table(Path(choice))
    if missing := [name for name in sites if name not in table]:
        raise UsageError(f"--s2-offset {choice} has no line for {', '.join(missing)}; write `{missing[0]},0` or `{missing[0]},-1000`")
    return {name: offset.Decision(table[name], f"table {Path(choice).name}") for name in sites}


def s2_radiometry(layer: Layer, shift: int, *, scale: float | None, nodata: float | str | None) -> Radiometry:
    """Numbers of one S2 site to reflectance x 10000."""
    info = layer.files[0]
    declared = info.scale if info.scale != 1.0 else S2_STORED
    gain = (scale if scale is not None else declared) / S2_STORED
    # A declared or given scale of 1e-4 must leave integers as they are.
    return Radiometry(1.0 if np.isclose(gain, 1.0, rtol=1e-9) else gain, 0.0, float(shift), _number(nodata, info, S2_NODATA))


def s1_radiometry(layer: Layer, *, scale: float | None, add: float | None, nodata: float | str | None) -> Radiometry:
    """Numbers of one S1 site to dB x 100. UsageError when they are not dB: backscatter in dB has negative values, power has none."""
    info = layer.files[0]
    gain = (scale if scale is not None else info.scale) / S1_STORED
    bias = (add if add is not None else info.offset) / S1_STORED
    radiometry = Radiometry(gain, bias, 0.0, _number(nodata, info, None))
    for channel in layer.channels:
        raw = sample(channel.path, channel.index)
        values = raw[valid_mask(raw, radiometry.nodata)] * gain + bias
        if values.size and (np.median(values) >= 1000 or values.min() >= 0):
            raise UsageError(f"{channel.path} is not in dB: its values after scaling run from {values.min() / 100:g} to {values.max() / 100:g}; "
                             "legal: dB, or numbers that --s1-scale and --s1-offset turn into dB (convert linear power first)")
    return radiometry


def _auto(layer: Layer, nodata: float | str | None) -> offset.Decision:
    info = layer.files[0]
    metadata = offset.from_metadata([f.path.name for f in layer.files], info.tags, scale=info.scale, offset=info.offset)
    empty = _number(nodata, info, S2_NODATA)
    values = {}
    for band, channel in zip(S2_BANDS, layer.channels, strict=True):
        raw = sample(channel.path, channel.index)
        values[band] = raw[valid_mask(raw, empty)]
    return offset.decide(metadata, offset.from_pixels(values))


def _number(option: float | str | None, info: RasterInfo, default: float | None) -> float | None:
    if option == "none":
        return None
    if option is not None:
        return float(option)
    return info.nodata if info.nodata is not None else default

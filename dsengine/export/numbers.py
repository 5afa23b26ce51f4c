"""How the numbers of a scene's files become what a corpus stores, so that an encoder sees a raster as it saw its corpus."""

from collections.abc import Mapping

import numpy as np

from dsengine.corpus.build import offset
from dsengine.corpus.build.pairing import Channel as BandOfFile
from dsengine.corpus.build.pairing import Layer
from dsengine.corpus.build.radiometry import S2_NODATA, S2_STORED, s1_radiometry
from dsengine.corpus.build.raster import Radiometry, RasterInfo, sample, valid_mask
from dsengine.corpus.schema import S1_BANDS, S2_BANDS, Contract
from dsengine.errors import UsageError
from dsengine.export.bands import Channel


def radiometries(channels: Mapping[str, Channel], contract: Contract, *, s2_offset: str) -> tuple[dict[str, Radiometry], dict[str, object]]:
    """Band -> radiometry, and what was decided and why. UsageError where the offset of Sentinel-2 numbers cannot be told, or S1 is not dB."""
    stored = {band.name: (scale, add) for band, scale, add in zip(contract.bands, contract.scale, contract.offset, strict=True)}
    found: dict[str, Radiometry] = {}
    facts: dict[str, object] = {}
    optical = {name: c for name, c in channels.items() if name in S2_BANDS}
    if optical:
        decision = _s2_offset(optical, s2_offset)
        facts["s2_offset"], facts["s2_offset_reason"] = decision.offset, decision.reason
        found |= {name: _s2(c.info, decision.offset) for name, c in optical.items()}
    for name, channel in channels.items():
        if name in S1_BANDS:
            layer = Layer((BandOfFile(channel.info.path, channel.index),), (channel.info,))
            found[name] = s1_radiometry(layer, scale=None, add=None, nodata=None)
        elif name not in found:
            found[name] = _declared(channel.info, *stored[name])
    return found, facts


def _s2(info: RasterInfo, shift: int) -> Radiometry:
    """Numbers of one file to reflectance x 10000."""
    gain = (info.scale if info.scale != 1.0 else S2_STORED) / S2_STORED
    nodata = S2_NODATA if info.nodata is None else info.nodata
    return Radiometry(1.0 if np.isclose(gain, 1.0, rtol=1e-9) else gain, 0.0, float(shift), nodata)


def _declared(info: RasterInfo, scale: float, add: float) -> Radiometry:
    """Numbers of another sensor: what the file declares as its scale and offset gives physical units."""
    return Radiometry(info.scale / scale, (info.offset - add) / scale, 0.0, info.nodata)


def _s2_offset(channels: Mapping[str, Channel], choice: str) -> offset.Decision:
    if offset.is_number(choice):
        return offset.Decision(int(choice), f"--s2-offset {choice}")
    if choice != "auto":
        raise UsageError(f"--s2-offset {choice}: legal: auto, 0, -1000")
    infos = {channel.info.path: channel.info for channel in channels.values()}
    first = next(iter(infos.values()))
    metadata = offset.from_metadata([path.name for path in infos], first.tags, scale=first.scale, offset=first.offset)
    values = {}
    for name, channel in channels.items():
        raw = sample(channel.info.path, channel.index)
        values[name] = raw[valid_mask(raw, _s2(channel.info, 0).nodata)]
    decision = offset.decide(metadata, offset.from_pixels(values))
    if decision.offset is None:
        raise UsageError(f"--s2-offset auto cannot tell for {first.path}: {decision.reason}; legal: 0 or -1000")
    return decision

"""The shapes that benches time, so that two benches never mean different things by the same name."""

from dsengine.augment.params import Augment

# Two views of a CSF sample at full strength, as methods/csf.py asks for them by default.
NUM_BANDS = 14  # 12 of Sentinel-2, then VV and VH
PATCH_PX = 160
VIEW_PX = 128
_CSF = dict(jitters=(1, 10), jitter_strength=(0.01, 0.1), band_dropout=(0.01, 0.3))
CSF_VIEWS = (Augment(**_CSF), Augment(shift_px=(1, 16), **_CSF))
AUGMENT_BATCH = 32

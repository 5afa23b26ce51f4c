"""The shapes that benches time, so that two benches never mean different things by the same name."""

from dsengine.augment.params import Augment

# Two views of a CSF sample at full strength, as methods/csf.py asks for them by default.
NUM_BANDS = 14  # 12 of Sentinel-2, then VV and VH
PATCH_PX = 160
VIEW_PX = 128
_CSF = dict(jitters=(1, 10), jitter_strength=(0.01, 0.1), band_dropout=(0.01, 0.3))
CSF_VIEWS = (Augment(**_CSF), Augment(shift_px=(1, 16), **_CSF))
AUGMENT_BATCH = 32

# A CSF step on one GPU: 128 samples, maps of 512 x 8 x 8 from 128 px views.
TRIPLET_DENSE = (128, 512, 8, 8)
TRIPLET_POOLED = (1024, 512)  # the papers' global batch, pooled
# (B, N, Dk, Dv) of the two SAGAN blocks of ResNet18-Attn at 128 px: after layer3 (16 x 16 cells) and layer4 (8 x 8).
ATTENTION = ((128, 256, 32, 256), (128, 64, 64, 512))
# (B, C, h, w) and group of the norms with most traffic at 128 px, two views of 128 samples: the stem's and layer1's, and layer2's.
NORM = (((256, 64, 64, 64), 128), ((256, 128, 32, 32), 128))
WARP = ((64, 1, 128, 128), (64, 14, 128, 128))  # single-band views of the third paper, and whole patches
UNFILTER = (64, 14 * 128 * 128 * 2)  # a batch of chunks of 14 x 128 x 128 int16

"""What may happen to a view (`Augment`, data) and what happens to it (`Draws`, counter-based)."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Strength as a function of the epoch: level 0 for `warmup` epochs, linear to 1 over `ramp`, then 1."""

    warmup: int = 0  # epochs
    ramp: int = 0  # epochs; 0 is full strength at once after the warm-up

    def level(self, epoch: int) -> float:
        """Level in [0, 1] of `epoch`, counted from 0."""
        if epoch < self.warmup:
            return 0.0
        return 1.0 if self.ramp == 0 else min(1.0, (epoch - self.warmup) / self.ramp)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """One view's augmentation. Each pair is (value at curriculum level 0, value at level 1)."""

    shift_px: tuple[int, int] = (0, 0)  # uniform in [-d, d] per axis, against the sample's shared crop
    dihedral: str = "none"  # none | shared (one of 8 for all views of the sample) | independent
    jitters: tuple[int, int] = (0, 0)  # number of colour jitters, each on a random triple of bands
    jitter_strength: tuple[float, float] = (0.0, 0.0)  # brightness, contrast, saturation, hue alike
    band_dropout: tuple[float, float] = (0.0, 0.0)  # probability per band; at least one band stays
    jitter_space: str = "zscore"  # zscore | physical
    curriculum: Curriculum = Curriculum()

"""What a crop study can be told; all of it is stored with the numbers."""

from dataclasses import dataclass
from typing import Literal

from dsengine.errors import UsageError
from dsengine.evaluate.crops.networks import NETWORKS
from dsengine.evaluate.settings import at_least

SPLIT_RULES = "fields, corpus, block, column:NAME"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings of `evaluate crops`."""

    label: str | None = None  # its name in the corpus; None: `crop`, or the only one of classes
    sensor: str | None = None  # of the raw input; None: s2, or the first
    where: str | None = None  # a condition on index columns; the rows that do not meet it are not there
    test_where: str | None = None  # task 2: rows that meet it are in no part of task 1 and are judged apart
    field: str | None = None  # index column that says which rows are one field; None: `field`, `place`, or each row its own
    split: str = "fields"  # fields | corpus | block | column:NAME (crops.parts)
    fractions: tuple[float, ...] = (0.6, 0.2, 0.2)  # of train, val, test; not for `corpus`
    min_fields: int = 10  # classes of fewer fields in the rows of task 1 are left out
    networks: tuple[str, ...] = NETWORKS
    configs: int = 10  # configurations of each network
    shrink: int = 1  # what the widths of the paper's spaces are divided by, for small machines: 1, 2 or 4
    parity: bool = False  # as the original code: learning rate drawn linearly, every epoch trained, the last one kept
    epochs: int = 20  # at most
    patience: int = 10  # epochs without a better val loss after which a fit ends; running statistics of BatchNorm need several to settle
    batch_size: int = 256
    weight_decay: float = 1e-5
    class_weight: Literal["none", "inverse"] = "none"  # of the classes in the loss
    seeds: int = 1  # fits of each configuration; its accuracy is their mean
    features: Literal["dates", "series"] = "dates"  # of the encoder: one vector a date, as in the paper, or one a series
    floors: tuple[str, ...] = ("untrained",)  # inputs beside the runs: features of their encoders before any training
    missing: Literal["refuse", "zero"] = "refuse"  # bands that an encoder takes and the corpus lacks
    num_draws: int = 1000  # of the bootstrap
    seed: int = 0
    device: str | None = None  # cpu | cuda | cuda:N; None: a GPU if there is one
    input: str | None = None  # which encoder of runs that have several, such as s2

    def __post_init__(self) -> None:
        for name, least in (("configs", 1), ("epochs", 1), ("patience", 1), ("batch_size", 1), ("seeds", 1), ("num_draws", 1), ("seed", 0),
                            ("min_fields", 3), ("weight_decay", 0)):
            at_least(self, name, least)
        if self.seed >= 2**32:
            raise UsageError(f"seed={self.seed}: must be in [0, 2**32)")
        if self.shrink not in (1, 2, 4):
            raise UsageError(f"shrink={self.shrink}: legal: 1, 2, 4")
        if not self.networks or len(set(self.networks)) < len(self.networks) or not set(self.networks) <= set(NETWORKS):
            raise UsageError(f"networks={','.join(self.networks)}: legal: one or more of {', '.join(NETWORKS)}")
        if not set(self.floors) <= {"untrained"}:
            raise UsageError(f"floors={','.join(self.floors)}: legal: untrained, or none")

"""What a run leaves open (`None`) is decided here, once, from the corpus and the machine, and checked."""

import math
import os
from dataclasses import replace

import torch

from dsengine import methods, plugin
from dsengine.config import RunConfig
from dsengine.corpus import Corpus, SeriesCorpus
from dsengine.data.labels import label_tables
from dsengine.data.sample import default_crop
from dsengine.engine import knn_probe, monitor
from dsengine.engine.profile import NEEDED
from dsengine.engine.settings import TrainConfig
from dsengine.errors import UsageError

_TAKES = {"image": "patches", "pixel": "pixels", "series": "series"}  # INPUT of an encoder's file -> kind of corpus


def choose_device(gpus: int | None) -> tuple[str, int]:
    """("cuda", ranks) or ("cpu", 0) for `device.gpus`; UsageError says how many GPUs there are."""
    found = torch.cuda.device_count()
    wanted = found if gpus is None else gpus
    if wanted < 0 or wanted > found:
        raise UsageError(f"device.gpus={wanted}: this machine shows {found} GPU{'s' * (found != 1)}; legal: 0 (CPU) to {found}")
    return ("cuda", wanted) if wanted else ("cpu", 0)


def complete(config: RunConfig, corpus: Corpus | SeriesCorpus, *, ranks: int, device: torch.device) -> RunConfig:
    """`config` with nothing left open in `train` and `data`; UsageError where the numbers do not fit."""
    _check_method(config.method, corpus)
    size = _crop(config.data.size, corpus)
    _check_encoders(config, corpus)
    rows = len(corpus.rows("train", config.data.where))
    train = config.train
    batch = _given(train.batch_size, _batch_size(rows, ranks))
    _check_batch(batch, rows, ranks, corpus.kind, "" if config.data.where is None else f" with data.where={config.data.where}")
    if train.micro_batch is not None and (batch // ranks) % train.micro_batch:
        legal = ", ".join(map(str, _divisors(batch // ranks)))
        raise UsageError(f"train.micro_batch={train.micro_batch}: each rank's {batch // ranks} samples must be whole micro-batches; legal: {legal}")
    group = _given(train.bn_group, _largest_divisor(_given(train.micro_batch, batch // ranks), at_most=128))
    if group != "global":
        _check_group(group, train.micro_batch, batch, ranks)
    if train.cuda_graphs and device.type != "cuda":
        raise UsageError(f"train.cuda_graphs=true: takes a GPU, this run is on {device.type}; legal: false")
    steps = rows // batch
    train = replace(train, batch_size=batch, bn_group=group, precision=_precision(train.precision, device),
                    log_steps=_given(train.log_steps, max(1, steps // 10)), checkpoint_steps=_given(train.checkpoint_steps, steps))
    train = replace(train, knn_label=knn_probe.chosen_label(corpus, train.knn_label, every=train.knn_epochs, where=config.data.where))
    monitor.installed(train.monitor)
    if train.profile and total_steps(train, steps) < NEEDED:
        raise UsageError(f"train.profile: takes {NEEDED} steps, this run has {total_steps(train, steps)}; legal: more epochs or train.max_steps")
    cores = len(os.sched_getaffinity(0))
    data = replace(config.data, size=size, threads=_given(config.data.threads, max(1, min(8, cores // ranks))))
    method = methods.complete(config.method, config.method_config, label_tables(corpus))
    return replace(config, train=train, data=data, method_config=method)


def _crop(size: int | None, corpus: Corpus | SeriesCorpus) -> int | None:
    """Side of the crops; None where there is nothing to crop."""
    if isinstance(corpus, SeriesCorpus):
        if size is not None:
            raise UsageError(f"data.size={size}: {corpus.path} holds {corpus.kind}, which have no crops; leave it out")
        return None
    size = _given(size, default_crop(corpus.patch_size))
    if size > corpus.patch_size:
        raise UsageError(f"data.size={size} does not fit the corpus's patches of {corpus.patch_size} px")
    return size


def _check_method(name: str, corpus: Corpus | SeriesCorpus) -> None:
    """UsageError for a method that cannot learn from what the corpus holds."""
    if corpus.kind not in methods.takes(name):
        legal = [other for other in plugin.names("dsengine.methods") if corpus.kind in methods.takes(other)]
        raise UsageError(f"method {name} takes {' or '.join(methods.takes(name))}, and {corpus.path} holds {corpus.kind}; legal: {', '.join(legal)}")


def _check_encoders(config: RunConfig, corpus: Corpus | SeriesCorpus) -> None:
    """UsageError for an encoder that does not take what the corpus holds, or series as long as it holds them."""
    for key, view in methods.inputs(config.method, config.method_config).items():
        name, settings = config.encoder_of(key)
        if _takes(name) != corpus.kind:
            legal = [other for other in plugin.names("dsengine.encoders") if _takes(other) == corpus.kind]
            raise UsageError(f"encoder {name} takes {_takes(name)}, and {corpus.path} holds {corpus.kind}; legal: {', '.join(legal)}")
        longest = _longest(corpus, view.sensor)
        if getattr(settings, "dates", longest) < longest:
            raise UsageError(f"encoder.dates={settings.dates}: the series has {longest} dates; legal: that many or more")


def _longest(corpus: Corpus | SeriesCorpus, sensor: str | None) -> int:
    """Dates of the corpus's series of `sensor`, or of any sensor; 0 where there are none."""
    if corpus.kind != "series":
        return 0
    return max((values.shape[1] for name, values in corpus.values.items() if sensor in (None, name)), default=0)


def _takes(encoder: str) -> str:
    """The kind of corpus that the encoder is for."""
    return _TAKES[getattr(plugin.find("dsengine.encoders", encoder), "INPUT", "image")]


def _given(value: int | str | None, default: int) -> int | str:
    return default if value is None else value


def total_steps(train: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of the whole run."""
    steps = train.epochs * steps_per_epoch
    return steps if train.max_steps is None else min(steps, train.max_steps)


def _batch_size(rows: int, ranks: int) -> int:
    """The largest multiple of 8 (and of ranks) up to 1024 with 4 steps an epoch; for fewer rows, as many as there are."""
    step = math.lcm(8, ranks)
    if rows < step:
        return max(rows // ranks * ranks, 2)
    return min(max(rows // 4 // step * step, step), 1024 // step * step)


def _check_batch(batch: int, rows: int, ranks: int, kind: str, met: str) -> None:
    if rows < 2:
        raise UsageError(f"corpus: its train split has {rows} {kind}{met}; at least 2 are needed")
    if batch > rows:
        raise UsageError(f"train.batch_size={batch} is larger than the corpus's train split of {rows} {kind}{met}")
    if batch % ranks:
        raise UsageError(f"train.batch_size={batch} does not divide among {ranks} ranks; "
                         f"legal near it: {batch // ranks * ranks or ranks}, {(batch // ranks + 1) * ranks}")


def _check_group(group: int, micro: int | None, batch: int, ranks: int) -> None:
    local = batch // ranks
    if micro is not None and micro % group:
        whole = [m for m in _divisors(local) if m % group == 0]
        raise UsageError(f"train.bn_group={group}: a micro-batch of {micro} samples must be whole groups; legal: {', '.join(map(str, _divisors(micro)))}, "
                         f"or, with {group}, train.micro_batch={' or '.join(map(str, whole)) or 'none'}")
    if local % group:
        legal = _divisors(local)
        counts = [r for r in range(1, batch + 1) if batch % (r * group) == 0]
        raise UsageError(f"train.bn_group={group}: each rank's {local} samples must be whole groups; legal: {', '.join(map(str, legal))}, "
                         f"or, with {group}, {', '.join(map(str, counts)) or 'no number of'} ranks")


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _largest_divisor(number: int, *, at_most: int) -> int:
    return max(d for d in _divisors(number) if d <= at_most)


def _precision(wanted: str, device: torch.device) -> str:
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Without AMX a CPU only emulates bf16 and fp32 is faster.
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"

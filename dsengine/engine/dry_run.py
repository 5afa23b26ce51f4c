"""`--dry-run`: what a run would be on its N ranks, which need not be here: sizes, memory, collectives, speed, disk. No file is written.

It refuses what a start would refuse. Memory and operations are counted (`engine.estimate`); the speed of GPUs is estimated, that of a CPU timed.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsengine.config import RunConfig
from dsengine.corpus import Corpus, SeriesCorpus, open_corpus
from dsengine.data.labels import label_tables
from dsengine.data.prefetch import batches_ahead
from dsengine.data.sample import Batch, View, num_channels, sized
from dsengine.engine import estimate, launch, plan
from dsengine.engine.optim import make_optimizer
from dsengine.engine.precision import place, view_dtype
from dsengine.engine.step import Step
from dsengine.engine.train import fresh_method
from dsengine.nn.norm import set_groups
from dsengine.nn.stem import set_form

_LIKE_REFERENCE = 7.6  # bytes moved for each byte kept for backward: ResNet18-Attn with BatchNorm, addition and ReLU in one pass, 158 MB for 20.8 MB
_REACHED = 0.8  # of compute and memory one after the other: published ResNet50 trainings reach 0.77 (8 H100) and 0.85 (A100)
_HOST_S = 1.8e-6  # an operator: the step of a ResNet18-Attn counts 3,600 here, where BatchNorm is many; its 900 launches take a host 5 to 8 ms
_TIMED = 8  # samples, at least one group
_KEPT = 3  # checkpoints besides `train.keep_checkpoints`: the best one, and one being written twice at worst


class Gpu(NamedTuple):
    """What a GPU does at best, dense."""

    half_flops: float  # a second, bf16 and fp16
    single_flops: float  # fp32 without TF32
    memory_rate: float  # bytes a second
    memory: int  # bytes


GPUS = {"A100 80 GB": Gpu(312e12, 19.5e12, 1.9e12, 80 * 10**9), "H100 80 GB": Gpu(790e12, 67e12, 3.0e12, 80 * 10**9),
        "H200 141 GB": Gpu(790e12, 67e12, 4.3e12, 141 * 10**9)}


class Planned(NamedTuple):
    """The numbers of a dry run."""

    config: RunConfig
    kind: str  # "cuda" or "cpu"
    ranks: int
    steps: int
    per_epoch: int
    batch_bytes: int  # views of one rank's batch
    ahead: int  # such batches made ahead of the step
    weight_bytes: int  # parameters and buffers
    gradient_bytes: int
    optimizer_bytes: int
    cost: estimate.Cost  # of one pass of one rank
    passes: int  # a step
    buckets: tuple[int, ...]  # bytes of each all-reduce of gradients
    gathers: tuple[tuple[str, int], ...]  # of the method
    samples_per_s: dict[str, float]  # of all ranks
    basis: str

    def rank_bytes(self) -> dict[str, int]:
        """What one rank holds, by what it is for; without the corpus."""
        return {"weights": self.weight_bytes, "gradients": self.gradient_bytes, "optimiser": self.optimizer_bytes,
                # Gradients are counted on their own line, and are among what the backward pass makes.
                "activations and temporaries": max(self.cost.peak_bytes - self.gradient_bytes, self.cost.saved_bytes),
                "batches": self.batch_bytes * (self.ahead + 3)}


def planned(config: RunConfig, *, resume: bool = False) -> Planned:
    """Count and time the run that `config` asks for. UsageError for what a start would refuse."""
    kind, ranks = _ranks(config)
    here = kind == "cpu" or torch.cuda.device_count() >= ranks // config.device.nodes
    launch.checked_folder(config, resume=resume)
    if not here:  # a GPU that is not there can be asked nothing: what it has in common with every one since 2020 is taken for granted
        precision = "bf16" if config.train.precision == "auto" else config.train.precision
        resident = "none" if config.data.resident == "gpu" else config.data.resident
        asked, config = config, replace(config, train=replace(config.train, precision=precision), data=replace(config.data, resident=resident))
    config = launch.checked(config, kind=kind if here else "cpu", ranks=ranks, resume=resume)
    if not here:
        config = replace(config, data=replace(config.data, resident=asked.data.resident))
    return _counted(config, open_corpus(config.corpus), kind=kind, ranks=ranks)


def _ranks(config: RunConfig) -> tuple[str, int]:
    """Device kind and ranks on all machines; GPUs that are asked for need not be here."""
    gpus = torch.cuda.device_count() if config.device.gpus is None else config.device.gpus
    return ("cuda", gpus * config.device.nodes) if gpus else ("cpu", config.device.procs * config.device.nodes)


def _counted(config: RunConfig, corpus: Corpus | SeriesCorpus, *, kind: str, ranks: int) -> Planned:
    train = config.train
    local = train.batch_size // ranks
    size = train.micro_batch or local
    batch = _batch_like(config, corpus, size)
    cost, passes = cost_like(config, corpus, ranks=ranks)
    method = _fresh(config, corpus, rows=size)
    optimizer = make_optimizer(method, train)
    trainable = [p for p in method.parameters() if p.requires_grad]
    gradients, moments = sum(map(_bytes, trainable)), {"adam": 2, "adamw": 2}.get(train.optimizer, 1)
    gathers = estimate.collectives_of(_fresh(config, corpus, rows=size), batch, precision=train.precision, ranks=ranks) if ranks > 1 else ()
    rows = len(corpus.rows("train", config.data.where))
    ahead = batches_ahead(on_cpu=kind == "cpu", local=isinstance(corpus.path, Path)) if config.data.prefetch is None else config.data.prefetch
    if kind == "cpu":
        rate, basis = _timed(config, corpus, method, optimizer)
        rates = {"this CPU": rate * config.device.nodes}
    else:
        rates, basis = {name: ranks * rate for name, rate in _by_roofline(cost, size, train.precision).items()}, _ROOFLINE
    return Planned(config, kind, ranks, plan.total_steps(train, rows // train.batch_size), rows // train.batch_size,
                   local // size * sum(map(_bytes, batch.views)), ahead, sum(map(_bytes, [*method.parameters(), *method.buffers()])), gradients,
                   gradients * moments, cost, passes, tuple(estimate.buckets(trainable)) if ranks > 1 else (), gathers, rates, basis)


def cost_like(config: RunConfig, corpus: Corpus | SeriesCorpus, *, ranks: int) -> tuple[estimate.Cost, int]:
    """What one pass of one rank costs, and its passes a step."""
    local = config.train.batch_size // ranks
    rows = config.train.micro_batch or local
    batch = _batch_like(config, corpus, rows)
    return estimate.cost_of(_fresh(config, corpus, rows=rows), batch, precision=config.train.precision), local // rows


_ROOFLINE = (f"estimated: operations at the GPU's peak, then {_LIKE_REFERENCE:g} bytes moved for each byte kept for backward at its memory's rate, "
             f"one after the other, and {_REACHED:.0%} of that, but no less than the host takes to launch it ({_HOST_S * 1e6:g} us an operator); "
             "loading, augmentation and collectives behind it")


def _by_roofline(cost: estimate.Cost, rows: int, precision: str) -> dict[str, float]:
    """Samples a second of one of each GPU."""
    flops, launches_s = (number * (1 if cost.backward else 3) for number in (cost.flops, cost.operators * _HOST_S))
    half = precision in ("bf16", "fp16")
    seconds = {name: flops / (gpu.half_flops if half else gpu.single_flops) + _LIKE_REFERENCE * cost.saved_bytes / gpu.memory_rate
               for name, gpu in GPUS.items()}
    return {name: rows / max(s / _REACHED, launches_s) for name, s in seconds.items()}


def _timed(config: RunConfig, corpus: Corpus | SeriesCorpus, method: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[float, str]:
    """Samples a second that this CPU takes through a step, all ranks together; on noise, of few samples."""
    group = config.train.bn_group if config.train.bn_group != "global" else 1
    rows = min(max(_TIMED, group), config.train.micro_batch or config.train.batch_size // config.device.procs)
    set_groups(method, config.train.bn_group, rows)
    set_form(method, config.train.first_conv)
    like = _batch_like(config, corpus, rows)
    batch = like._replace(views=tuple(torch.randn(x.shape, dtype=torch.float32).to(x.dtype).contiguous(memory_format=_form(x)) for x in like.views),
                          sample_id=torch.arange(rows), label=None if like.label is None else torch.zeros(like.label.shape, dtype=like.label.dtype))
    step = Step(method, optimizer, precision=config.train.precision, world=batch.world)
    seconds = []
    for k in range(4):
        start = time.perf_counter()
        step(batch._replace(step=k), lr=0.0)
        seconds.append(time.perf_counter() - start)
    # The ranks of a CPU share its cores: together they are about as fast as one.
    return rows / min(seconds[1:]), f"timed here: 3 steps of {rows} samples of noise, one process; loading behind it"


def _fresh(config: RunConfig, corpus: Corpus | SeriesCorpus, *, rows: int) -> nn.Module:
    method = place(fresh_method(config, corpus.bands), config.train.precision, torch.device("cpu"))
    set_groups(method, config.train.bn_group, rows)
    set_form(method, config.train.first_conv)
    return method


def _batch_like(config: RunConfig, corpus: Corpus | SeriesCorpus, rows: int) -> Batch:
    """A batch of `rows` without memory."""
    views = sized(fresh_method(config, corpus.bands).views, config.data.size)
    dtype = view_dtype(config.train.precision)
    made = [torch.empty(_shape(view, corpus, rows), dtype=dtype, device="meta") for view in views]
    made = [x.contiguous(memory_format=_form(x)) for x in made]
    return Batch(tuple(made), torch.empty(rows, dtype=torch.int64, device="meta"), _label_like(config, corpus, rows), seed=config.train.seed)


def _shape(view: View, corpus: Corpus | SeriesCorpus, rows: int) -> tuple[int, ...]:
    channels = num_channels(view, corpus.bands)
    if isinstance(corpus, Corpus):
        return rows, channels, view.size, view.size
    dates = max(values.shape[1] for values in corpus.values.values())
    return (rows, dates, channels) if corpus.kind == "series" else (rows, channels)


def _label_like(config: RunConfig, corpus: Corpus | SeriesCorpus, rows: int) -> Tensor | None:
    label = getattr(fresh_method(config, corpus.bands), "label", None)
    if label is None:
        return None
    table = label_tables(corpus)[label]
    shape = {"class": (rows,), "multilabel": (rows, len(table.values)), "classmap": (rows, config.data.size, config.data.size)}[table.kind]
    return torch.empty(shape, dtype=torch.float32 if table.kind == "multilabel" else torch.int64, device="meta")


def _form(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.contiguous_format


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def lines(found: Planned) -> list[str]:
    """What there is to say, for a terminal."""
    config, train = found.config, found.config.train
    local, corpus = train.batch_size // found.ranks, open_corpus(config.corpus)
    groups = "all samples of a view" if train.bn_group == "global" else f"{train.bn_group} samples of a view, {local // train.bn_group} on each rank"
    kept = found.rank_bytes()
    encoder = ", ".join(dict.fromkeys(config.encoder_of(key)[0] for key in fresh_method(config, corpus.bands).encoders))
    told = [f"plan         {config.method} with {encoder} on {_on(found)}; nothing was started and no file written",
            f"corpus       {config.corpus}: {len(corpus.rows('train', config.data.where)):,} {corpus.kind} to train on, {len(corpus.bands)} bands"
            + (f", crops of {config.data.size} px" if config.data.size else ""),
            f"batch        {train.batch_size} = {found.ranks} x {local}, {train.precision}"
            + (f", in {found.passes} passes of {train.micro_batch}" if found.passes > 1 else ""),
            f"BatchNorm    groups of {groups}",
            f"steps        {found.steps:,}: {found.per_epoch} an epoch; a line every {train.log_steps}, a checkpoint every {train.checkpoint_steps}",
            f"operations   {found.cost.flops / (train.micro_batch or local) / 1e9:.2f} GFLOP a sample, forward and backward"
            + ("" if found.cost.backward else "; forward alone: the backward pass of this method could not be counted"),
            f"memory       {sum(kept.values()) / 1e9:.2f} GB of tensors a rank besides the corpus "
            "(a CPU process was measured to take 1.3 times as much): "
            + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in kept.items()),
            f"             {_corpus_line(found, corpus)}"]
    return [*told, *_speed(found), *_sent(found), *_disk(found)]


def _on(found: Planned) -> str:
    what = "GPU" if found.kind == "cuda" else "CPU rank"
    here = f" ({torch.cuda.device_count()} here)" if found.kind == "cuda" else ""
    nodes = found.config.device.nodes
    return f"{found.ranks} {what}{'s' * (found.ranks > 1)}{here}" + (f" of {nodes} machines" if nodes > 1 else "")


def _corpus_line(found: Planned, corpus: Corpus | SeriesCorpus) -> str:
    size = corpus_bytes(corpus, found.config)
    on_gpu = f"; on a GPU where half of what its memory leaves holds it: {_fitting(found, size)}" if found.kind == "cuda" else ""
    return f"corpus decoded {size / 1e9:.2f} GB, data.resident={found.config.data.resident}{on_gpu}"


def _fitting(found: Planned, size: int) -> str:
    rest = {name: gpu.memory - sum(found.rank_bytes().values()) for name, gpu in GPUS.items()}
    return ", ".join(f"{name} {'too small for the step' if left < 0 else 'yes' if size <= left / 2 else 'no'}" for name, left in rest.items())


def corpus_bytes(corpus: Corpus | SeriesCorpus, config: RunConfig) -> int:
    """Of the train split, decoded, as it is kept in memory."""
    rows = len(corpus.rows("train", config.data.where))
    arrays: Sequence = list((corpus.arrays if isinstance(corpus, Corpus) else corpus.values).values())
    return rows * sum(array.dtype.itemsize * (array.size // array.shape[0]) for array in arrays)


def _speed(found: Planned) -> list[str]:
    samples = found.steps * found.config.train.batch_size
    told = [f"{name} {rate:,.0f} samples/s, {_duration(samples / rate)} in all" for name, rate in found.samples_per_s.items()]
    return [f"speed        {'; '.join(told)}", f"             {found.basis}"]


def _sent(found: Planned) -> list[str]:
    if found.ranks == 1:
        return ["collectives  none"]
    gradients = sum(found.buckets)
    ring = 2 * (found.ranks - 1) / found.ranks * gradients
    told = [f"{len(found.buckets)} all-reduces of {gradients / 1e6:.1f} MB of gradients, {ring / 1e6:.1f} MB sent by each rank in a ring"]
    told += [f"{name.replace('_base', '')} of {size / 1e3:,.1f} kB from each rank" for name, size in found.gathers]
    return [f"collectives  a step: {'; '.join(told)}"]


def _disk(found: Planned) -> list[str]:
    one = found.weight_bytes + found.optimizer_bytes
    all_of_them = one * (found.config.train.keep_checkpoints + _KEPT)
    folder = Path(found.config.out or "runs").absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return [f"disk         {one / 1e6:.0f} MB a checkpoint, at most {all_of_them / 1e9:.2f} GB of them at a time; "
            f"{free / 1e9:.0f} GB free in {folder}" + ("" if free > all_of_them else ": too little")]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

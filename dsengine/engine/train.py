"""The loop. Read it from top to bottom; every periodic duty is an `if` that states when it is due."""

import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dsengine import config as configuration
from dsengine.config import RunConfig
from dsengine.corpus import Band, Corpus, SeriesCorpus, open_corpus
from dsengine.corpus.quarantine import marks
from dsengine.corpus.schema import Contract
from dsengine.data import order
from dsengine.data.loader import FixedViews
from dsengine.data.open import can_tell_apart, open_heldout, open_loader
from dsengine.data.sample import band_numbers, num_channels, sized
from dsengine.dist import World, mean_over_ranks_
from dsengine.encoders import build_encoder, shape_of
from dsengine.engine import alarms, checkpoint, figures, optim, plan, pretrained
from dsengine.engine.log import Meter, RunLog, SilentLog
from dsengine.engine.settings import TrainConfig
from dsengine.engine.step import Step, forward, place, view_dtype
from dsengine.errors import RunError, UsageError, nearest
from dsengine.methods import Method, build_method, inputs
from dsengine.nn.norm import running_statistics, set_groups


def train(config: RunConfig, run: Path, *, world: World, device: torch.device, resume: bool) -> None:
    """Run `config` (nothing left open, see `plan.complete`) to its end in the folder `run`.

    Leaves metrics.jsonl, tensorboard/, checkpoints/, figures/. Raises UsageError for numbers that do
    not fit, RunError for damaged data, a full disk, or a loss or gradient that is not finite.
    """
    # Setup: what a run is made of
    corpus = open_corpus(config.corpus)
    contract = corpus.contract()
    setting = config.train
    saved, passed_over = checkpoint.latest(run) if resume else (None, [])
    method = place(fresh_method(config, corpus.bands, contract=contract if saved is None else None), setting.precision, device)
    set_groups(method, setting.bn_group, setting.batch_size // world.size)
    optimizer = optim.make_optimizer(method, setting)
    views = sized(method.views, config.data.size)
    common = dict(seed=setting.seed, device=device, dtype=view_dtype(setting.precision), num_threads=config.data.threads,
                  where=config.data.where, label=method.label, timeout_s=config.data.timeout_s)
    rows = corpus.rows("train", config.data.where)

    # Where to start
    start = 0 if saved is None else saved.step
    if saved is not None:
        checkpoint.restore(saved, method, optimizer, device)

    with ExitStack() as stack:
        loader = stack.enter_context(open_loader(corpus, views, setting.batch_size, rank=world.rank, world=world.size,
                                                 prefetch=config.data.prefetch, resident=config.data.resident, **common))
        # Telling one place from itself would measure nothing: then unseen views, but of places that training sees.
        heldout_split = "val" if can_tell_apart(corpus, views, "val", config.data.where) else "all"
        heldout = _heldout(corpus, views, setting.heldout_samples, common, split=heldout_split)
        if heldout is not None:
            stack.enter_context(heldout)
        if saved is not None:
            loader.load_state_dict(saved.loader)
        total = plan.total_steps(setting, loader.steps_per_epoch)
        log = stack.enter_context(RunLog(run, total=total, start=start) if world.rank == 0 else SilentLog())
        log.say(f"{corpus.kind} kept in memory: {loader.tier.kind} ({loader.tier.reason})")
        if heldout is None:
            log.say(f"no held-out loss: that takes 2 {corpus.kind}")
        elif heldout_split == "all":
            too_few = "lies in fewer than 2 places, or all of it in one neighbourhood" if corpus.kind == "patches" else f"has fewer than 2 {corpus.kind}"
            log.say(f"held-out loss: fixed views of all splits, because the val split {too_few}")
        if held_back := int((marks(corpus) != 0).sum()):
            log.say(f"{corpus.kind} in quarantine, left out: {held_back}")
        for key, encoder in method.encoders.items():
            if encoder.origin:
                log.say(f"encoder {key}: {encoder.origin}")
        for sentence in passed_over:
            log.say(f"passed over a damaged checkpoint: {sentence}")
        if start:
            log.say(f"resuming at step {start} of {total} from {saved.path}")

        # Loop
        step_once = Step(method, optimizer, precision=setting.precision, world=world)
        meter, alarmed = Meter(), False
        walk = order.walk(rows, seed=setting.seed, start=start, global_batch=setting.batch_size)
        for at in islice(walk, total - start):  # which step, epoch and samples: known to the host without asking anybody
            before = time.perf_counter()
            batch = next(loader)._replace(world=world)
            meter.add(samples=setting.batch_size, waited_s=time.perf_counter() - before)

            lr = optim.learning_rate(setting, step=at.step, total=total, per_epoch=loader.steps_per_epoch)
            scores = step_once(batch, lr=lr)
            done = at.step + 1
            method.after_step(done / total)

            epoch_ends = done % loader.steps_per_epoch == 0
            if at.step == 0 and world.rank == 0:
                figures.draw_views(batch, corpus, views, run / "figures" / "views.png")
                meter = Meter()  # drawing is no part of a step
            if done % setting.log_steps == 0 or epoch_ends or done == total:
                record = _read(scores, world)  # here, and before a checkpoint, the host waits for the device
                _stop_if_withheld(step_once, world, rows, setting)
                record = {"step": done, "epoch": at.epoch, **record, "lr": lr, "ids_crc": zlib.crc32(at.ids.tobytes()), **meter.read()}
                if epoch_ends or done == total:
                    mean_over_ranks_(running_statistics(method), world)
                    if heldout is not None:
                        record["heldout_loss"] = _heldout_loss(method, heldout, setting.precision)
                    log.say(_epoch_line(record, scores.keys(), setting.epochs))
                    if world.rank == 0:
                        figures.draw_pictures(scores, batch, corpus, views, run / "figures")
                if found := alarms.collapsed(record):
                    record["alarm"] = f"collapse: {found}"
                    if not alarmed:
                        log.say(f"alarm at step {done}: features collapse ({found}): samples look alike to the encoder")
                alarmed = bool(found)
                log.write(record)
            if done % setting.checkpoint_steps == 0 or done == total:
                _stop_if_withheld(step_once, world, rows, setting)  # a bad state must not push a good one out
                mean_over_ranks_(running_statistics(method), world)
                if world.rank == 0:
                    log.sync()
                    checkpoint.save(run, step=done, method=method, optimizer=optimizer, loader=loader.state_dict(),
                                    config=configuration.dump(config), contract=contract, keep=setting.keep_checkpoints,
                                    inputs=_described(config, corpus))
    if world.rank == 0:
        figures.draw_losses(run)


def fresh_method(config: RunConfig, bands: Sequence[Band], *, contract: Contract | None = None) -> Method:
    """The method and its encoders for a corpus of `bands`, initialised from the seed alone, whatever ran in this process before.

    contract: the corpus's, for encoders to begin with the weights of `encoder.weights`; None: they are left as initialised. Either way an
    encoder's `origin` says in one line where its weights come from, "" where from the seed.
    """
    wanted = inputs(config.method, config.method_config)
    for key in config.encoders.keys() - wanted.keys():
        raise UsageError(f"encoders.{key}: {config.method} has no such input; {nearest(key, wanted)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        encoders = {}
        for key, view in wanted.items():
            name, settings = config.encoder_of(key)
            encoders[key] = encoder = build_encoder(name, num_channels(view, bands), **shape_of(vars(settings)))
            encoder.origin = "" if contract is None else pretrained.start(encoder, settings, contract, key=key, numbers=band_numbers(view, bands))
        return build_method(config.method, encoders=encoders, **vars(config.method_config))


def _described(config: RunConfig, corpus: Corpus | SeriesCorpus) -> dict[str, dict]:
    """What each encoder was shown, for whoever loads it: places of its bands in the contract, and channels."""
    return {key: {"bands": band_numbers(view, corpus.bands), "in_channels": num_channels(view, corpus.bands)}
            for key, view in inputs(config.method, config.method_config).items()}


def _heldout(corpus: Corpus | SeriesCorpus, views: tuple, most: int, common: dict, *, split: str) -> FixedViews | None:
    """One repeatable pass over views that training never sees, or None where there are not two samples to compare."""
    rows = min(len(corpus.rows(split, common["where"])), most)
    if rows < 2:
        return None
    # The last batch takes what is left, and a sample alone has nobody to differ from.
    batch = next(size for size in range(min(rows, 64), 1, -1) if rows % size != 1)
    return open_heldout(corpus, views, batch, split=split, limit=most, **common)


@torch.no_grad()
def _heldout_loss(method: nn.Module, heldout: FixedViews, precision: str) -> float:
    """Mean loss at full strength on fixed views. Every rank computes all of it: nobody waits, nobody differs."""
    method.eval()
    losses, rows = [], []
    for batch in heldout:
        losses.append(forward(method, batch, precision)["loss"])
        rows.append(batch.sample_id.shape[0])
    method.train()
    return sum(loss.item() * n for loss, n in zip(losses, rows)) / sum(rows)


def _read(scores: dict[str, Tensor], world: World) -> dict[str, float]:
    """The step's scalars, averaged over ranks, on the host."""
    scalars = {name: value for name, value in scores.items() if value.numel() == 1}
    values = torch.stack([value.double().reshape(()) for value in scalars.values()])
    mean_over_ranks_([values], world)
    return dict(zip(scalars, values.tolist()))


def _stop_if_withheld(step_once: Step, world: World, rows: np.ndarray, setting: TrainConfig) -> None:
    """End the run when an update had to be withheld since the last look."""
    withheld = step_once.withheld()
    if withheld:
        step = withheld[0]
        _, ids = order.batch_ids(rows, seed=setting.seed, step=step, global_batch=setting.batch_size)
        raise RunError(f"loss or gradients are not finite at step {step + 1} (rank {world.rank}); that update was withheld, "
                       f"the weights are good; sample ids: {', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}")


def _epoch_line(record: dict, scores: Iterable[str], epochs: int) -> str:
    shown = [f"{name} {record[name]:.4f}" for name in (*scores, "heldout_loss") if name in record]
    return (f"epoch {record['epoch'] + 1:>3}/{epochs}  step {record['step']}  {'  '.join(shown)}  "
            f"{record['samples_per_s']:.1f} samples/s  data wait {record['data_wait']:.1%}")

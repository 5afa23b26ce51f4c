"""The loop. Read it from top to bottom; every periodic duty is an `if` that states when it is due."""

import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

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
from dsengine.dist import World, gather_rows, mean_over_ranks_
from dsengine.encoders import build_encoder, shape_of
from dsengine.engine import alarms, capture, checkpoint, figures, optim, plan, pretrained, profile, whiten
from dsengine.engine.clock import Clock
from dsengine.engine.compiled import compile_encoders
from dsengine.engine.elastic_beat import DATA, REST, STEP, Batches, Heartbeat
from dsengine.engine.failure import Captures
from dsengine.engine.knn_probe import Probe
from dsengine.engine.log import Meter, RunLog, SilentLog
from dsengine.engine.monitor import open_monitor
from dsengine.engine.precision import place, view_dtype
from dsengine.engine.saver import Saver
from dsengine.engine.signals import Stop
from dsengine.engine.step import Step, forward
from dsengine.engine.usage import usage
from dsengine.errors import RunError, Stopped, UsageError, nearest
from dsengine.methods import Method, build_method, inputs
from dsengine.nn.norm import running_statistics, set_groups
from dsengine.nn.stem import set_form


def train(config: RunConfig, run: Path, *, world: World, device: torch.device, resume: bool) -> None:
    """Run `config` (nothing left open, see `plan.complete`) to its end in the folder `run`.

    Leaves metrics.jsonl, tensorboard/, checkpoints/, figures/. Raises UsageError for numbers that do
    not fit, RunError for damaged data, a full disk, or a loss or gradient that is not finite, Stopped
    when SIGTERM or SIGUSR1 asked the run to save and end.
    """
    # Setup: what a run is made of
    corpus = open_corpus(config.corpus)
    contract = corpus.contract()
    setting = config.train
    saved, passed_over = checkpoint.latest(run) if resume else (None, [])
    whitening = whiten.measure(config, corpus) if saved is None else {}
    method = place(fresh_method(config, corpus.bands, contract=contract if saved is None else None, whitening=whitening), setting.precision, device)
    set_groups(method, setting.bn_group, setting.micro_batch or setting.batch_size // world.size, world=world)
    set_form(method, setting.first_conv)
    if setting.compile:
        compile_encoders(method)
    optimizer = optim.make_optimizer(method, setting)
    views = sized(method.views, config.data.size)
    common = dict(seed=setting.seed, device=device, dtype=view_dtype(setting.precision), num_threads=config.data.threads,
                  where=config.data.where, label=method.label, timeout_s=config.data.timeout_s)
    rows = corpus.rows("train", config.data.where)

    # Where to start
    start = 0 if saved is None else saved.step
    if saved is not None:
        checkpoint.restore(saved, method, optimizer, device)
    _check_agreed(config, start, run, world, device)

    with ExitStack() as stack:
        stop = stack.enter_context(Stop(world, timeout_s=config.device.collective_timeout_s + 60))
        heart = stack.enter_context(Heartbeat(run, world, Batches(rows, setting.seed, setting.batch_size, world.size),
                                              timeout_s=config.device.collective_timeout_s))
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
        probe = None
        if setting.knn_epochs is not None:
            view = next(iter(inputs(config.method, config.method_config).values()))
            probe = stack.enter_context(Probe(corpus, *sized((view,), config.data.size), common, label=setting.knn_label))
        log = stack.enter_context(RunLog(run, total=total, start=start) if world.rank == 0 else SilentLog())
        if setting.monitor != "none" and world.rank == 0:
            log.tell(open_monitor(setting.monitor, run, settings=configuration.flatten(configuration.dump(config)), say=log.say))
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
        for key, found in whitening.items():
            log.say(f"encoder {key}: {found.says}")
        for sentence in passed_over:
            log.say(f"passed over a damaged checkpoint: {sentence}")
        if start:
            log.say(f"resuming at step {start} of {total} from {saved.path}")
        if saved is not None and not passed_over and world.rank == 0:
            checkpoint.tidy(run, keep=setting.keep_checkpoints)

        saver = stack.enter_context(Saver(run, beside=device.type == "cuda" if setting.async_save is None else setting.async_save, keep=setting.keep_checkpoints, config=configuration.dump(config), contract=contract,
                                          inputs=_described(config, corpus)))

        # Loop
        step_once = Step(method, optimizer, precision=setting.precision, world=world, micro_batch=setting.micro_batch,
                         cuda_graphs=setting.cuda_graphs)
        captures = Captures(run=run, config=config, corpus=corpus, views=views, loading=common, world=world, device=device)
        meter, clock = Meter(), Clock(method.encoders, world=world, device=device)
        watch = alarms.Watch(alarms.advice(kept=loader.tier.kind, kept_why=loader.tier.reason, threads=config.data.threads,
                                           prefetch=loader.prefetch, device=device.type), attracts=method.attracts)
        profiler = stack.enter_context(profile.Profiler(run, method, device=device, world=world)) if setting.profile and world.rank == 0 else None
        batches = loader if profiler is None else profiler.waiting(loader)
        wanted = ""  # why the next step is to be captured
        unread = []  # steps that nobody asked yet whether they were finite, with what they returned
        walk = order.walk(rows, seed=setting.seed, start=start, global_batch=setting.batch_size)
        for at in islice(walk, total - start):  # which step, epoch and samples: known to the host without asking anybody
            heart.at(at.step, DATA)
            before = time.perf_counter()
            batch = next(batches)._replace(world=world)
            waited_s = time.perf_counter() - before
            meter.add(samples=setting.batch_size, waited_s=waited_s)
            clock.start(waited_s=waited_s)

            if at.step + 1 == setting.capture_step:
                wanted = "asked for by train.capture_step"
            if wanted:
                weights = capture.weights_of(method)
            lr = optim.learning_rate(setting, step=at.step, total=total, per_epoch=loader.steps_per_epoch)
            heart.at(at.step, STEP)
            scores = step_once(batch, lr=lr)
            done = at.step + 1
            stopping = stop.asked()  # the same answer on every rank
            saver.check()
            epoch_ends, heldout_loss = done % loader.steps_per_epoch == 0, None
            logs = done % setting.log_steps == 0 or epoch_ends or done == total
            saves = done % setting.checkpoint_steps == 0 or done == total or stopping
            unread.append((at, capture.scalars(scores)))
            if device.type == "cpu" or logs or saves:  # a CPU knows at once, a GPU is asked where the host waits anyway; a bad state must not be saved
                if withheld := step_once.withheld():
                    raise captures.failed(withheld, unread, batch, method=method)
                unread.clear()
            if wanted:
                log.say(captures.keep(at, batch, scores, weights=weights, why=wanted))
                wanted = ""
            method.after_step(done / total)

            if at.step == 0 and world.rank == 0:
                figures.draw_views(batch, corpus, views, run / "figures" / "views.png")
                meter = Meter()  # drawing is no part of a step
            if logs:
                heart.at(at.step, REST)
                record = _read(scores, world)  # here, and before a checkpoint, the host waits for the device
                record = {"step": done, "epoch": at.epoch, **record, "lr": lr, "ids_crc": zlib.crc32(at.ids.tobytes()), **meter.read(),
                          **alarms.of_gradients(step_once.gradient_norms()), **clock.read(), **usage(device)}
                if epoch_ends or done == total:
                    mean_over_ranks_(running_statistics(method), world)
                    if heldout is not None:
                        record["heldout_loss"] = heldout_loss = _heldout_loss(method, heldout, setting.precision, world)
                    if probe is not None and ((at.epoch + 1) % setting.knn_epochs == 0 or done == total):
                        record |= probe.accuracy(next(iter(method.encoders.values())), precision=setting.precision)
                    log.say(_epoch_line(record, scores.keys(), setting.epochs))
                    if world.rank == 0:
                        figures.draw_pictures(scores, batch, corpus, views, run / "figures")
                for kind, sentence in watch.look(record).items():  # those that begin here; the record has all
                    log.say(f"alarm at step {done}: {kind}: {sentence}")
                    if setting.capture_alarms and kind in alarms.OF_A_STEP:
                        wanted = f"the step after an alarm at step {done} ({kind})"
                log.write(record)
            if saves:
                mean_over_ranks_(running_statistics(method), world)
                if world.rank == 0:
                    saver.start(done, method=method, optimizer=optimizer, loader=loader.state_dict(), heldout_loss=heldout_loss)
            if profiler is not None and (told := profiler.step_done()):  # once, after the last step that it traces
                log.say(told)
            if stopping and done < total:
                saver.finish()
                gather_rows(torch.zeros(1, device=device), world.group)  # launchers kill those that go on when the first one ends
                raise Stopped(f"stopped by {stopping} after step {done} of {total}, which is saved; `--resume` with the same --out goes on from there")
        saver.finish()
    if world.rank == 0:
        figures.draw_losses(run)


def fresh_method(config: RunConfig, bands: Sequence[Band], *, contract: Contract | None = None,
                 whitening: Mapping[str, whiten.Measured] | None = None) -> Method:
    """The method and its encoders for a corpus of `bands`, initialised from the seed alone, whatever ran in this process before.

    contract: the corpus's, for encoders to begin with the weights of `encoder.weights`; None: they are left as initialised. Either way an
    encoder's `origin` says in one line where its weights come from, "" where from the seed. whitening: of the encoders that have it and no weights.
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
            if whitening and key in whitening:
                encoder.whitening.matrix.copy_(whitening[key].matrix)
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
def _heldout_loss(method: nn.Module, heldout: FixedViews, precision: str, world: World) -> float:
    """Mean loss at full strength on fixed views. Ranks share the batches, which are whole, so that a loss over a batch is the same for any number
    of ranks; the last ranks may have one batch less, or none."""
    method.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in heldout:
        if batch.step % world.size == world.rank:
            rows = batch.sample_id.shape[0]
            sums += torch.tensor([forward(method, batch, precision)["loss"].item() * rows, rows], dtype=torch.float64)
    method.train()
    device = next(method.parameters()).device
    total = gather_rows(sums[None].to(device), world.group).cpu().sum(0)  # in rank order, the same on every rank
    return (total[0] / total[1]).item()


def _check_agreed(config: RunConfig, start: int, run: Path, world: World, device: torch.device) -> None:
    """RunError where ranks have other settings, as tasks meant to be runs of their own, or found other checkpoints, as a network file system may show."""
    settings = configuration.dump(config)
    given = zlib.crc32(repr([settings.get(key) for key in ("method", "encoder", "encoders", "train")]).encode())
    ranks = gather_rows(torch.tensor([[start, given]], device=device), world.group).tolist()
    if len({given for _, given in ranks}) > 1:
        raise RunError(f"{run}: ranks have different settings, as if each was to be a run of its own; start those without torchrun or srun's several tasks")
    if len({start for start, _ in ranks}) > 1:
        raise RunError(f"{run}: ranks would start at different steps ({', '.join(str(start) for start, _ in ranks)} by rank): "
                       "do all machines see the same folder?")


def _read(scores: dict[str, Tensor], world: World) -> dict[str, float]:
    """The step's scalars, averaged over ranks, on the host."""
    scalars = {name: value for name, value in scores.items() if value.numel() == 1}
    values = torch.stack([value.double().reshape(()) for value in scalars.values()])
    mean_over_ranks_([values], world)
    return dict(zip(scalars, values.tolist()))


def _epoch_line(record: dict, scores: Iterable[str], epochs: int) -> str:
    shown = [f"{name} {record[name]:.4f}" for name in (*scores, "heldout_loss", "knn_accuracy") if name in record]
    return (f"epoch {record['epoch'] + 1:>3}/{epochs}  step {record['step']}  {'  '.join(shown)}  "
            f"{record['samples_per_s']:.1f} samples/s  data wait {record['data_wait']:.1%}")

"""The `dsengine` command. Exit codes: 0 done, 1 the run failed, 2 the request was not legal, 75 stopped by a signal and saved: start it again."""

import argparse
import os
import sys
from pathlib import Path

import dsengine
from dsengine.errors import RunError, Stopped, UsageError, nearest


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of the two expected kinds print as one line."""
    argv = sys.argv[1:] if argv is None else argv
    rest_sooner()
    args = argparse.Namespace(run=None)
    try:
        args = build_parser(argv).parse_args(argv)
        return args.run(args)
    except UsageError as error:
        return _fail(error, 2)
    except Stopped as stop:
        return _fail(stop, 75) if int(os.environ.get("RANK", 0)) == 0 else 75
    except RunError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        hint = "`--resume` with the same --out goes on from the last checkpoint" if args.run is _train else "the same command goes on"
        return _fail(f"interrupted; {hint}", 1)
    except BrokenPipeError:  # `dsengine ... | head`: nobody reads on, which is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def rest_sooner() -> None:
    """Have the threads of OpenMP, which torch's operators share out work with on a CPU, sleep after about 0.5 ms without work instead of 14.

    Until they sleep they hold the cores that the loader works on beside training: a step with the loader takes 1.03 of one without instead of
    1.05 (docs/performance.md). libgomp reads this when torch is loaded, so it has to be there before; what the user has set stays.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = "10000"


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser of the whole command line `argv`: some flags depend on it, as those of `corpus build` on --source."""
    from dsengine.corpus import commands
    from dsengine.evaluate import commands as evaluations
    from dsengine.export import commands as exports
    from dsengine.study import command as study
    from dsengine.study.report import command as reports

    parser = _Parser(prog="dsengine", description="Self-supervised pretraining on Sentinel-1/2 imagery.")
    parser.add_argument("--version", action="version", version=f"dsengine {dsengine.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    commands.add_parser(subparsers, argv)
    _add_train(subparsers)
    exports.add_parsers(subparsers)
    evaluations.add_parser(subparsers)
    study.add_parser(subparsers)
    reports.add_parser(subparsers)
    replay = subparsers.add_parser("replay", help="repeat a captured step on the CPU and say where it went wrong", description=(
        "Repeat a step that a run captured (RUN/captures/step-XXXXXXXX), on one CPU, without its corpus: its loss, whether that is the captured one, "
        "what first was not finite, and the norm of every gradient. Exit code 1 where the loss is not the captured one."))
    replay.add_argument("capture", metavar="CAPTURE", help="the capture's folder")
    replay.set_defaults(run=_replay)
    doctor = subparsers.add_parser("doctor", help="what is built, found and missing, and what to do about it")
    doctor.set_defaults(run=_doctor)
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse with the nearest legal flags in its errors, and no guessing from prefixes."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> None:
        """Print one line and exit with 2."""
        head, _, unknown = message.partition("unrecognized arguments: ")
        if unknown and not head:
            flag = unknown.split()[0]
            message += f"; {nearest(flag, self.all_flags())}"
        self.exit(2, f"{self.prog}: {message}\n")

    def all_flags(self) -> list[str]:
        """Long flags of this parser and its subcommands."""
        flags = {s for action in self._actions for s in action.option_strings if s.startswith("--")}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags.update(flag for sub in action.choices.values() for flag in sub.all_flags())
        return sorted(flags)


def _add_train(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("train", help="pretrain an encoder", description=(
        "Pretrain an encoder. Without --corpus a small synthetic corpus is made once in the user's cache. "
        "A run is defaults < --config < flags < --set; --print-config shows the result."))
    parser.add_argument("--method", metavar="NAME", help="pretraining method (default csf)")
    parser.add_argument("--encoder", metavar="NAME", help="encoder (default resnet18)")
    parser.add_argument("--corpus", metavar="PATH", help="corpus folder, made by `dsengine corpus build` or `synth`")
    parser.add_argument("--out", metavar="DIR", help="run folder (default: a new one under ./runs)")
    parser.add_argument("--resume", nargs="?", const="yes", choices=["yes", "auto"], metavar="auto",
                        help="go on with the run in --out from its last checkpoint; auto: if there is one, else start it")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of this machine to use (default all; 0 is CPU)")
    parser.add_argument("--procs", type=int, metavar="N", help="ranks on CPU (default 1)")
    parser.add_argument("--nodes", type=int, metavar="N", help="machines, on each of which the same command is started (default 1)")
    parser.add_argument("--resident", metavar="WHERE", help="keep decoded patches in memory: auto, gpu, ram or none (default auto)")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the train split (default 20)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="global batch over all ranks")
    parser.add_argument("--seed", type=int, metavar="N", help="of everything that is drawn (default 0)")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, such as a run's config.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting by its dotted key, e.g. train.lr=1e-3")
    parser.add_argument("--profile", action="store_true", help="trace a few steps into profile/ of the run folder and say where their time goes")
    parser.add_argument("--dry-run", action="store_true", help="print sizes, memory, speed and disk of the run on its GPUs, which need not be here, and stop")
    parser.add_argument("--print-config", action="store_true", help="print the configuration as YAML and stop")
    parser.set_defaults(run=_train)


_FLAGS = {"method": "method.name", "encoder": "encoder.name", "corpus": "corpus", "out": "out", "gpus": "device.gpus",
          "procs": "device.procs", "nodes": "device.nodes",
          "resident": "data.resident", "epochs": "train.epochs", "batch_size": "train.batch_size", "seed": "train.seed"}


def _train(args: argparse.Namespace) -> int:
    from dsengine.engine.signals import before_the_first_step

    with before_the_first_step():
        return _train_to_the_end(args)


def _train_to_the_end(args: argparse.Namespace) -> int:
    from dsengine import config as configuration

    given = [configuration.nest(key, getattr(args, flag)) for flag, key in _FLAGS.items() if getattr(args, flag) is not None]
    file = [configuration.load_file(args.config)] if args.config else []
    given += [configuration.nest("train.profile", True)] if args.profile else []
    settings = configuration.merge(*file, *given, *map(configuration.assignment, args.set))
    from dsengine.engine import launch

    resume = launch.begun(settings) if args.resume == "auto" else args.resume is not None
    config = launch.configure(settings, resume=resume)
    if args.print_config:
        print(configuration.to_yaml(config), end="")
        return 0
    if args.dry_run:
        from dsengine.engine import dry_run

        print("\n".join(dry_run.lines(dry_run.planned(config, resume=resume))))
        return 0
    try:
        folder, leads = launch.run(config, resume=resume)
    except RunError:
        if config.out is not None and (Path(config.out) / "config.yaml").exists() and int(os.environ.get("RANK", 0)) == 0:
            _report(Path(config.out))
        raise
    if leads:
        _report(folder)
        print(_summary(folder))
        if args.profile:
            _finish_profile(folder)
    return 0


def _finish_profile(folder: Path) -> None:
    from dsengine.engine import bounds

    print("\n".join(bounds.finish(folder)))


def _report(folder: Path) -> None:
    """Write the run's report; where that cannot be, say so: what was trained does not fail for it."""
    from dsengine.study.report.write import write_short_report

    try:
        write_short_report(folder)
    except (UsageError, RunError) as error:
        print(f"dsengine: no report: {' '.join(str(error).split())}", file=sys.stderr)


def _summary(folder: Path) -> str:
    from dsengine.engine.checkpoint import latest
    from dsengine.engine.log import read_metrics

    records = read_metrics(folder)
    losses = [(name, [r[name] for r in records if name in r]) for name in ("loss", "heldout_loss")]
    text = ", ".join(f"{name.replace('_', '-')} {values[0]:.4f} -> {values[-1]:.4f}" for name, values in losses if values)
    return (f"done: {text}\n  run         {folder}\n  loss figure {folder / 'figures' / 'loss.png'}\n"
            f"  views       {folder / 'figures' / 'views.png'}\n  report      {folder / 'report.html'}\n  checkpoint  {latest(folder)[0].path}")


def _replay(args: argparse.Namespace) -> int:
    from dsengine.engine import replay

    replayed = replay.replay(args.capture)
    print("\n".join(replay.lines(replayed)))
    return 0 if replay.verdict(replayed)[0] else 1


def _doctor(args: argparse.Namespace) -> int:
    from dsengine.doctor import report

    return report()


def _fail(error: object, code: int) -> int:
    print(f"dsengine: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""`dsengine report`: its flags, and the call that they stand for."""

import argparse


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("report", help="one HTML file about runs and their evaluations", description=(
        "Write one self-contained HTML file about run folders: settings, curves, views, embeddings, and the evaluations that lie in or beside "
        "them or are named."))
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or the folder of an evaluation")
    parser.add_argument("--out", metavar="FILE.html", help="default: RUN/report.html, or ./report.html for several runs")
    parser.add_argument("--corpus", metavar="PATH", help="where the runs' corpus lies now (default: where they were trained)")
    parser.add_argument("--label", metavar="NAME", help="label that colours the embeddings (default: the first with one class a sample)")
    parser.add_argument("--samples", type=int, default=600, metavar="N", help="samples to embed, 0 leaves embeddings out (default 600)")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    from dsengine.study.report.write import write_report

    print(write_report(args.runs, out=args.out, corpus=args.corpus, label=args.label, samples=args.samples))
    return 0

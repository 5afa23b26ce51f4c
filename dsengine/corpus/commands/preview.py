"""Draw a contact sheet of patches and a map of where they lie."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus preview`."""
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="the sheet; the map is FILE-map.png (default: NAME-preview.png here)")
    parser.add_argument("--rows", metavar="LIST", help="patches to show, such as 3,10-14 (default: --count of them by chance)")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="patches to draw by chance (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of that draw (default: 0)")
    parser.add_argument("--label", metavar="NAME", help="class map to show (default: the first)")
    parser.add_argument("--outline", type=Path, metavar="FILE", help="vector file in degrees, such as of coasts, drawn on the map")


def run(args: argparse.Namespace) -> int:
    """`corpus preview PATH`: prints the two files it wrote."""
    from dsengine.corpus import open_corpus
    from dsengine.corpus.preview import contact_sheet, pick_rows, save
    from dsengine.corpus.preview_map import location_map
    from dsengine.corpus.preview_series import series_sheet
    from dsengine.corpus.series import SeriesCorpus

    corpus = open_corpus(args.path)
    out = args.out or Path(f"{corpus.path.name}-preview.png")
    rows = pick_rows(corpus, rows=args.rows, count=args.count, seed=args.seed)
    sheet = series_sheet(corpus, rows) if isinstance(corpus, SeriesCorpus) else contact_sheet(corpus, rows, label=args.label)
    save({out: sheet, out.with_name(f"{out.stem}-map.png"): location_map(corpus, outline=args.outline)})
    return 0

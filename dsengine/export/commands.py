"""`dsengine embed` and `dsengine export`: flags, and the calls that they stand for."""

import argparse
from pathlib import Path

from dsengine.errors import UsageError


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands."""
    embed = subparsers.add_parser("embed", help="embeddings of a corpus or of rasters, and search in them", description=(
        "Write embeddings of a corpus, a raster, a folder of rasters or a STAC item; the suffix of --out says the format. Interrupted, the same "
        "command goes on. With --nearest alone, search in what --out holds."))
    _add_embed(embed)
    embed.set_defaults(run=_embed)
    export = subparsers.add_parser("export", help="write an encoder as safetensors, torch.export program, ONNX and for timm", description=(
        "Write a run's encoder to a new folder in forms that other tools read, each with the data contract inside."))
    _add_export(export)
    export.set_defaults(run=_export)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", metavar="DIR", dest="model", help="run folder, or a folder or file that `dsengine export` wrote")
    parser.add_argument("--encoder", metavar="NAME", help="which encoder of a run with several")
    parser.add_argument("--corpus", metavar="PATH", help="corpus of patches; one vector a patch")
    parser.add_argument("--raster", metavar="PATH", help="GeoTIFF, folder of them, or STAC item (.json); one vector a cell of the dense map")
    parser.add_argument("--out", metavar="PATH", required=True, help="new name ending in .zarr, .tif or .parquet; for several scenes a folder or DIR/*.tif")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--pooled", action="store_true", default=None, help="one vector a patch of the training size (default for a corpus)")
    which.add_argument("--dense", action="store_false", dest="pooled", help="one vector a cell (default for rasters)")
    parser.add_argument("--dtype", default="float32", metavar="TYPE", help="float32, float16 or int8 with one scale and offset (default float32)")
    parser.add_argument("--window", type=int, metavar="PX", help="side of half-overlapping, blended windows, or of --pooled patches "
                        "(default: exact where the encoder sees a bounded neighbourhood, else the training size)")
    parser.add_argument("--bands", metavar="NAME,...", help="what to show an encoder that was trained on bands drawn at random")
    parser.add_argument("--s2-offset", default="auto", metavar="auto|0|-1000", help="what to add to Sentinel-2 numbers of rasters (default auto)")
    parser.add_argument("--where", metavar="CONDITION", help="only patches that meet it, on index columns of the corpus")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument("--map", action="store_true", help="also draw the embedding as colours beside the imagery, to OUT's name with .png")
    parser.add_argument("--nearest", metavar="ID|LON,LAT", help="print the cells or patches most similar to this one")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many of them (default 10)")
    parser.add_argument("--min-km", type=float, default=0.0, metavar="KM", help="leave out what is closer than this (default 0)")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", metavar="DIR", dest="model", required=True, help="run folder, or a folder that `dsengine export` wrote")
    parser.add_argument("--encoder", metavar="NAME", help="which encoder of a run with several")
    parser.add_argument("--out", metavar="DIR", required=True, help="new folder")
    parser.add_argument("--formats", metavar="NAME,...", help="of safetensors, program, onnx, timm (default: all that can be written)")


def _embed(args: argparse.Namespace) -> int:
    query = None if args.nearest is None else parse_query(args.nearest)
    sources = [source for source in (args.corpus, args.raster) if source is not None]
    if args.model is None and not sources and query is not None:
        return _search(Path(args.out), query, args)
    if args.model is None or len(sources) != 1:
        raise UsageError("embed: give --run and one of --corpus and --raster; --nearest alone searches in what --out holds")
    from dsengine.corpus.commands._terminal import progress_bar
    from dsengine.export.embed import default_device, embed

    with progress_bar("embedding", None) as advance:
        written = embed(args.model, args.corpus or args.raster, args.out, pooled=args.pooled, dtype=args.dtype, window=args.window,
                        bands=args.bands.split(",") if args.bands else None, name=args.encoder, s2_offset=args.s2_offset, where=args.where,
                        device=args.device or default_device(), picture=args.map, progress=advance)
    for path in written:
        print(path)
    if query is not None:
        return _search(written[0], query, args)
    return 0


def _search(path: Path, query: int | tuple[float, float], args: argparse.Namespace) -> int:
    from dsengine.export.nearest import nearest

    found = nearest(path, query, top=args.top, min_km=args.min_km)
    print(f"most similar to {found.query} in {path}\n{'id':>12} {'cosine':>8} {'lon':>11} {'lat':>10} {'km':>9}")
    for row in zip(found.id, found.cosine, found.lon, found.lat, found.km, strict=True):
        print("{:12d} {:8.4f} {:11.5f} {:10.5f} {:9.2f}".format(*row))
    return 0


def parse_query(text: str) -> int | tuple[float, float]:
    """An id, or longitude and latitude in degrees."""
    try:
        parts = [float(part) for part in text.split(",")]
        if len(parts) == 1:
            return int(text)
        lon, lat = parts
    except ValueError:
        raise UsageError(f"--nearest {text}: legal: an id, or longitude,latitude in degrees") from None
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise UsageError(f"--nearest {text}: legal: longitude in -180 ... 180, latitude in -90 ... 90")
    return lon, lat


def _export(args: argparse.Namespace) -> int:
    from dsengine.export.encoder import export_encoder

    folder = export_encoder(args.model, args.out, name=args.encoder, formats=args.formats.split(",") if args.formats else None)
    for path in sorted(folder.iterdir()):
        print(path)
    return 0

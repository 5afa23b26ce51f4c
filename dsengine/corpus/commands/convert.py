"""Write a corpus anew with another codec, shard size, or resolution groups, whole or in part."""

import argparse

from dsengine.corpus.commands._terminal import progress_bar, show

CODECS = ("lz4", "zstd", "none", "bitpack", "bitpack-lorenzo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus convert`."""
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--codec", metavar="|".join(CODECS), choices=CODECS, help="of the pixels (default: as it is)")
    parser.add_argument("--shard-patches", type=int, metavar="N", help="patches in one shard file (default: as it is)")
    parser.add_argument("--group", action="append", default=[], metavar="ARRAY:FACTOR=BAND,...",
                        help="bands that get an array of their own, FACTOR finest pixels a pixel; may be repeated")
    parser.add_argument("--resample", default="exact", metavar="exact|mean",
                        help="what joins pixels of a coarser group: exact refuses where they differ (default: exact)")
    parser.add_argument("--size", type=int, metavar="N", help="keep the middle of each patch, N finest pixels a side (default: all)")
    parser.add_argument("--drop", action="append", default=[], metavar="NAME", help="label or further index column to leave out; may be repeated")
    parser.add_argument("--where", metavar="EXPRESSION", help='patches to keep, such as "cloud < 0.4"')


def run(args: argparse.Namespace) -> int:
    """`corpus convert PATH OUT`."""
    from dsengine.corpus.build.plan import build_corpus
    from dsengine.corpus.edit.copy import Changes, copy_plan
    from dsengine.corpus.edit.layout import parse_group

    changes = Changes(codec=args.codec, shard_patches=args.shard_patches, groups=tuple(map(parse_group, args.group)), resample=args.resample,
                      where=args.where, size=args.size, drop=tuple(args.drop))
    plan = copy_plan([args.path], changes, command="corpus convert")
    with progress_bar("patches", plan.num_patches) as advance:
        return show(build_corpus(args.out, plan, progress=advance))

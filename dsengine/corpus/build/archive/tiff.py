"""Where the first directory of a TIFF keeps what does not fit in its entries: above all the table that says where its blocks lie."""

import struct
from collections.abc import Callable, Iterator

from dsengine.corpus.build.archive.http import Refused

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # bytes of each field type
_MAX_ENTRIES = 4096


def outlying(peek: Callable[[int, int], bytes]) -> Iterator[tuple[int, int]]:
    """(offset, length) of every value outside the first directory of a classic or big TIFF. `peek(offset, length)` gives bytes of the file.

    Raises Refused for anything else.
    """
    head = peek(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    version = struct.unpack(f"{order}H", head[2:4])[0] if order else 0
    if version == 42:
        (directory,), counter, entry, inline = struct.unpack(f"{order}I", head[4:8]), "H", "HHI4s", "I"
    elif version == 43:
        (directory,), counter, entry, inline = struct.unpack(f"{order}Q", head[8:16]), "Q", "HHQ8s", "Q"
    else:
        raise Refused("cannot be read as a GeoTIFF: it does not begin as one")
    count = struct.unpack(f"{order}{counter}", peek(directory, struct.calcsize(f"{order}{counter}")))[0]
    if not 0 < count <= _MAX_ENTRIES:
        raise Refused(f"cannot be read as a GeoTIFF: a directory of {count} entries")
    table = peek(directory + struct.calcsize(f"{order}{counter}"), count * struct.calcsize(f"{order}{entry}"))
    for _, kind, number, value in struct.iter_unpack(f"{order}{entry}", table):
        length = _SIZES.get(kind, 1) * number
        if length > len(value):
            yield struct.unpack(f"{order}{inline}", value)[0], length

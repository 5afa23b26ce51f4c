"""bbox.pkl and timestamp.pkl of eo-learn patches, without unpickling: what the pickles would build is read as records and interpreted.

Three generations of sentinelhub wrote them: BBox in `sentinelhub.common` and later `sentinelhub.geometry`, its CRS an enum by EPSG number.
"""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build.restricted_pickle import Record, as_datetime, parse_pickle
from dsengine.errors import UsageError

BBOXES = ("sentinelhub.common.BBox", "sentinelhub.geometry.BBox")
CRSS = ("sentinelhub.constants.CRS",)
# Names of UTC; a record of `copyreg._reconstructor` has the class as its first argument, which stays a name.
UTCS = ("pytz._UTC", "pytz.UTC", "dateutil.tz.tzutc", "dateutil.tz.tz.tzutc")
_MAKERS = ("copyreg._reconstructor", "copy_reg._reconstructor")
_TIMES = ("datetime.datetime", "datetime.timezone", "datetime.timedelta", "datetime.tzinfo", *_MAKERS, *UTCS)
MAX_TIMES = 100_000


class Box(NamedTuple):
    """Bounds in metres of `epsg`."""

    min_x: float
    min_y: float
    max_x: float
    max_y: float
    epsg: int


def box(content: bytes, source: str) -> Box:
    """Bounds in a pickle of a BBox. UsageError naming `source` when it holds anything else; nothing in it is run."""
    return _interpreted(_box, parse_pickle(content, source, allowed=[*BBOXES, *CRSS]), source, "a sentinelhub BBox")


def times(content: bytes, source: str) -> np.ndarray:
    """(T,) int64 ns UTC in a pickled list of datetimes; those without time zone are UTC. UsageError as for `box`."""
    return _interpreted(_times, parse_pickle(content, source, allowed=_TIMES), source, "a list of datetimes")


def _interpreted(read: Callable[[Any], Any], value: Any, source: str, what: str) -> Any:
    try:
        return read(value)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise UsageError(f"{source} does not hold {what}: {error}") from error


def _box(value: Any) -> Box:
    if isinstance(value, tuple) and len(value) == 5:  # as later versions of eo-learn's example data have it
        found = Box(*(float(number) for number in value[:4]), int(value[4]))
    elif isinstance(value, Record) and value.name in BBOXES:
        state = value.state
        found = Box(*(float(state[name]) for name in Box._fields[:4]), _epsg(state["_crs"] if "_crs" in state else state["crs"]))
    else:
        raise ValueError(f"it is {value!r:.80}")
    if not all(math.isfinite(number) for number in found[:4]) or found.min_x >= found.max_x or found.min_y >= found.max_y:
        raise ValueError(f"bounds {found[:4]} are empty")
    return found


def _epsg(crs: Any) -> int:
    if not isinstance(crs, Record) or crs.name not in CRSS or len(crs.args) != 1:
        raise ValueError(f"its CRS is {crs!r:.80}")
    return int(str(crs.args[0]).upper().removeprefix("EPSG:"))


def _times(value: Any) -> np.ndarray:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TIMES:
        raise ValueError(f"it is {value!r:.80}")
    return np.array([_time(item) for item in value], "M8[ns]").astype(np.int64)


def _time(item: Any) -> datetime:
    if not isinstance(item, Record) or len(item.args) != 2:
        return as_datetime(item)
    moment = as_datetime(Record(item.name, item.args[:1]))
    return moment - _offset(item.args[1])


def _offset(zone: Any) -> timedelta:
    """What a time zone is ahead of UTC."""
    if not isinstance(zone, Record):
        raise ValueError(f"time zone {zone!r:.80}")
    if zone.name in UTCS:
        return timedelta(0)
    if zone.name in _MAKERS and zone.args and getattr(zone.args[0], "dotted", None) in UTCS:
        return timedelta(0)
    delta = zone.args[0] if zone.name == "datetime.timezone" and zone.args else None
    if not isinstance(delta, Record) or delta.name != "datetime.timedelta":
        raise ValueError(f"time zone {zone!r:.80}")
    return timedelta(*delta.args)

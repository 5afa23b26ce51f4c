"""Date windows: a period cut into stretches of one orbit cycle, so that points spread evenly over the seasons."""

from datetime import UTC, date, datetime
from typing import NamedTuple

from dsengine.errors import UsageError

ORBIT_DAYS = 12  # repeat cycle of one Sentinel-1 satellite
DAY_NS = 86_400 * 10**9


class Window(NamedTuple):
    """A stretch of time, ns UTC: from `start` up to, not including, `end`."""

    start: int
    end: int


def windows(start: str, end: str, *, days: int = ORBIT_DAYS) -> list[Window]:
    """Windows of `days` days from the date `start` (yyyy-mm-dd) up to, not including, `end`; the last is cut off there."""
    first, last = _day(start, "--start"), _day(end, "--end")
    if first >= last:
        raise UsageError(f"--start {start} --end {end}: the end must come after the start")
    if days < 1:
        raise UsageError(f"--window-days {days}: legal: at least 1")
    return [Window(begin, min(begin + days * DAY_NS, last)) for begin in range(first, last, days * DAY_NS)]


def to_ns(text: str) -> int:
    """ns UTC of an ISO 8601 time; without a zone it is UTC. ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * 10**9 + moment.microsecond * 1000


def to_iso(time_ns: int) -> str:
    """ISO 8601 with milliseconds and Z, as STAC and Earth Engine take it; digits beyond are cut off."""
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{time_ns // 10**6 % 1000:03d}Z"


def _day(text: str, flag: str) -> int:
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text}: legal: a date yyyy-mm-dd") from error
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 10**9

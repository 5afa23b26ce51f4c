"""Scenes that a STAC API lists at a place and time, through pystac-client with this project's own requests beneath it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from dsengine.corpus.build import utm
from dsengine.corpus.build.archive.http import Broken, Http, Reply, clean
from dsengine.corpus.build.archive.scenes import Scene
from dsengine.corpus.build.dates import Window, to_iso
from dsengine.corpus.build.optional import need
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.stac.items import scene
from dsengine.corpus.build.stac.providers import Provider
from dsengine.errors import RunError

PAGE, MAX_ITEMS = 100, 2000  # items a page, and a place and window


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which scenes are wanted."""

    max_cloud: float  # percent of the whole scene
    orbit: str  # ascending, descending or any; Sentinel-1
    s2_offset: str  # auto, 0 or -1000


class Finder:
    """`find` of scenes.decide: one client per archive, shared by threads."""

    def __init__(self, http: Http, providers: Mapping[str, Provider], filters: Filters) -> None:
        self._providers, self._filters = providers, filters
        clients: dict[str, Any] = {}
        for provider in providers.values():
            if provider.api not in clients:
                clients[provider.api] = _client(provider.api, http)
        self._clients = clients

    def __call__(self, sensor: str, grid: Grid, window: Window) -> Sequence[Scene]:
        """All scenes of a sensor whose footprint holds the middle of the patch and that begin in the window, edges included."""
        provider = self._providers[sensor]
        collection = provider.collection(sensor)
        search = self._clients[provider.api].search(
            collections=[collection.collection], intersects={"type": "Point", "coordinates": list(utm.centre(grid))},
            datetime=f"{to_iso(window.start)}/{to_iso(window.end)}", limit=PAGE, max_items=MAX_ITEMS)
        found = [scene(item, collection, sensor, max_cloud=self._filters.max_cloud, orbit=self._filters.orbit, s2_offset=self._filters.s2_offset)
                 for item in _items(search, provider.api) if item.get("collection", collection.collection) == collection.collection]
        return [each for each in found if each is not None]


def _items(search: Any, api: str) -> list[dict[str, Any]]:
    try:
        return list(search.items_as_dicts())
    except (RunError, KeyboardInterrupt):
        raise
    except Exception as error:  # the client's errors have no common base, and an answer may be any JSON
        raise RunError(f"{clean(api)}: the answer to a search is no item collection ({type(error).__name__})") from None


def _client(api: str, http: Http) -> Any:
    module, reader = need("pystac_client", "stac"), need("pystac_client.stac_api_io", "stac")

    class PatientIO(reader.StacApiIO):
        """Requests by `Http`. Links in answers are followed to http(s) only: never to a local file."""

        def request(self, href: str, method: str | None = None, headers: dict[str, str] | None = None,
                    parameters: dict[str, Any] | None = None) -> str:
            """The text of a JSON answer."""
            method = (method or "GET").upper()
            if urlsplit(href).scheme not in ("http", "https"):
                raise RunError(f"{clean(href)}: a link that is no http(s) URL")
            if method != "GET":
                return http.fetch(href, _text, method=method, headers=headers, body=parameters)
            query = urlencode({key: value if isinstance(value, str) else json.dumps(value) for key, value in (parameters or {}).items()})
            return http.fetch(href + (("&" if "?" in href else "?") + query if query else ""), _text, headers=headers)

        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            """As the base class, without its way to local files."""
            if isinstance(source, str) and urlsplit(source).scheme not in ("http", "https"):
                raise RunError(f"{clean(source)}: a link that is no http(s) URL")
            return super().read_text(source, *args, **kwargs)

    try:
        return module.Client.open(api, stac_io=PatientIO(max_retries=None))
    except (RunError, KeyboardInterrupt):
        raise
    except Exception as error:  # as above
        raise RunError(f"{clean(api)}: is no STAC API ({type(error).__name__}: {str(error)[:200]})") from None


def _text(reply: Reply) -> str:
    try:
        json.loads(reply.body)
        return reply.body.decode()
    except (ValueError, RecursionError) as error:
        raise Broken(f"no JSON, {len(reply.body)} bytes") from error

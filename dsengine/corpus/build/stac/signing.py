"""Signed URLs. Tokens live in the memory of the process that uses them: they are never stored, shown or sent to a host that did not give them."""

import os
import threading
import time
from datetime import datetime
from urllib.parse import urlsplit

from dsengine.corpus.build.archive.http import Http, Refused, clean
from dsengine.corpus.build.stac.providers import Signing

_RENEW_S = 60.0  # before a token ends
_DEFAULT_S = 300.0  # of a token that does not say when it ends
_KEY_VARIABLE = "PC_SDK_SUBSCRIPTION_KEY"  # optional, raises the Planetary Computer's limits


class Signer:
    """Signs URLs for threads of one process; one token an account and container."""

    def __init__(self, http: Http, signing: Signing) -> None:
        self._http, self._signing = http, signing
        self._tokens: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def sign(self, url: str, renew: bool = False) -> str:
        """`url`, with a token where its host wants one; `renew` when the last one was refused. Raises Refused, Unreachable."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if self._signing.kind == "none" or not any(host == own or (own.startswith(".") and host.endswith(own)) for own in self._signing.hosts):
            return url
        account, container = host.partition(".")[0], parts.path.lstrip("/").partition("/")[0]
        token = self._token(f"{self._signing.url}/{account}/{container}", renew)
        return f"{url}?{token}"

    def _token(self, address: str, renew: bool) -> str:
        with self._lock:
            token, ends = self._tokens.get(address, ("", 0.0))
            if renew or ends - _RENEW_S < time.time():
                key = os.environ.get(_KEY_VARIABLE)
                answer = self._http.json(address, headers={"Ocp-Apim-Subscription-Key": key} if key else None)
                token, ends = _parse(answer, address)
                self._tokens[address] = token, ends
            return token


def _parse(answer: object, address: str) -> tuple[str, float]:
    token = answer.get("token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token:
        raise Refused(f"{clean(address)}: no token in the answer")
    try:
        return token.lstrip("?"), datetime.fromisoformat(str(answer["msft:expiry"])).timestamp()
    except (KeyError, ValueError):
        return token.lstrip("?"), time.time() + _DEFAULT_S

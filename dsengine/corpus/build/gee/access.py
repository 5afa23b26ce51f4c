"""Who asks Earth Engine: Google credentials found the usual ways, kept in memory only, renewed when they end."""

import os
import threading
from collections.abc import Mapping
from typing import Any

from dsengine.corpus.build.optional import need
from dsengine.errors import RunError, UsageError

SCOPES = ("https://www.googleapis.com/auth/earthengine", "https://www.googleapis.com/auth/cloud-platform")
_HOW = "run `earthengine authenticate`, or set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account"


class Access:
    """Headers for requests in the name of `project`, shared by threads of one process. UsageError without credentials."""

    def __init__(self, project: str) -> None:
        self._project, self._lock = project, threading.Lock()
        self._credentials = _credentials()
        self._transport = need("google.auth.transport.requests", "gee").Request()

    def headers(self, renew: bool = False) -> Mapping[str, str]:
        """Authorization and the project that pays; `renew` when the last token was refused. RunError when no token can be had."""
        with self._lock:
            if renew or not self._credentials.valid:
                try:
                    self._credentials.refresh(self._transport)
                except need("google.auth.exceptions", "gee").GoogleAuthError as error:
                    raise RunError(f"Google gives no token ({type(error).__name__}): {_HOW}") from None  # its text may hold the answer's
            return {"Authorization": f"Bearer {self._credentials.token}", "X-Goog-User-Project": self._project}


def _credentials() -> Any:
    auth = need("google.auth", "gee")
    try:
        if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            return auth.default(scopes=SCOPES)[0]
        return need("ee.data", "gee").get_persistent_credentials()
    except (need("google.auth.exceptions", "gee").GoogleAuthError, need("ee", "gee").EEException, OSError, ValueError) as error:
        raise UsageError(f"no Google credentials ({type(error).__name__}): {_HOW}") from None

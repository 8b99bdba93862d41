"""API keys: read from a file or the environment, compared in constant time; sessions for the page."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from mrflow.errors import RequestError

VARIABLE = "MRFLOW_API_KEYS"
MIN_LENGTH = 16  # characters; `openssl rand -hex 16` gives 32
_SESSION_SECONDS = 12 * 3600
_MAX_SESSIONS = 10_000


class Keys:
    """The keys of a server. Only their hashes are held; a client's name is the head of its key's hash."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Take the keys; raises RequestError for one that is too short to be safe."""
        texts = list(keys)
        for number, key in enumerate(texts, 1):
            if len(key) < MIN_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
                raise RequestError(
                    f"API key {number} is too short or has spaces or odd characters; it must have {MIN_LENGTH} "
                    "plain characters at least. Try: openssl rand -hex 24"
                )
        self._digests = [_digest(key) for key in texts]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def client(self, key: str) -> str | None:
        """Return the name of the client whose key this is, or None; the time it takes tells nothing."""
        given, found = _digest(key), None
        for digest in self._digests:
            if hmac.compare_digest(given, digest):
                found = f"key-{digest.hex()[:12]}"
        return found

    @classmethod
    def read(cls, file: str | Path | None) -> Keys:
        """Return the keys in a file, one a line, and in the environment's MRFLOW_API_KEYS.

        '#' begins a comment, at the begin of a line or after a space.
        Raises RequestError for a file that can't be read or holds none, and for a key that is too short.
        """
        keys = os.environ.get(VARIABLE, "").replace(",", " ").split()
        if file is not None:
            try:
                lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", "it is no UTF-8 text; save it as such")
                raise RequestError(f"The key file {file} cannot be read: {why}.") from None
            found = [key for line in lines if (key := re.split(r"(?:^|\s)#", line)[0].strip())]
            if not found:
                raise RequestError(f"The key file {file} holds no keys; write one a line.")
            keys += found
        return cls(dict.fromkeys(keys))


class Sessions:
    """Who has shown a key on the page's login form, for twelve hours."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._clients: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def begin(self, client: str) -> str:
        """Return a new token for `client`."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._clients) >= _MAX_SESSIONS:
                del self._clients[next(iter(self._clients))]
            self._clients[_digest(token).hex()] = client, time.monotonic() + _SESSION_SECONDS
        return token

    def client(self, token: str) -> str | None:
        """Return whose token this is, or None."""
        with self._lock:  # looked up by its hash, so that timing tells nothing of the token
            client, end = self._clients.get(_digest(token).hex(), ("", 0.0))
        return client if end > time.monotonic() else None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

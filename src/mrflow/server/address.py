"""Where clients find the server: under which names, below which path, and behind which proxies."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import Scope

from mrflow.errors import RequestError
from mrflow.server.errors import ApiError

_PUBLIC = re.compile(r"(?ai)(?:(https?)://([\w.:[\]-]+))?(?!/v1(?:/|$))((?:/[\w~-][\w.~-]*)*)/?")
_FORWARDED = ("x-forwarded-host", "x-forwarded-proto", "x-forwarded-for")  # taken away once they are read


class Address:
    """What the server was told of its place."""

    def __init__(
        self, *, hosts: Collection[str] | None = None, root_path: str = "", trusted_proxies: Sequence[str] = ()
    ) -> None:
        """Check it; raises RequestError.

        hosts: names under which the server may be called, None for any. root_path: the path under which a proxy
            shows the server, "/images", or the whole address, "https://example.org/images", which then holds
            whatever the proxy says. trusted_proxies: addresses and networks, "*" for all, whose X-Forwarded-For,
            -Proto and -Host are believed.
        """
        public = _PUBLIC.fullmatch(root_path)
        if public is None:
            text = (
                f"root_path is {root_path!r:.80}; it must be like /images, not /v1, or https://example.org/images."
            )
            raise RequestError(text)
        self._scheme, self._host, self._root = public.groups("")
        self.trusted_proxies = list(trusted_proxies)
        if odd := [each for each in trusted_proxies if each != "*" and _network(each) is None]:
            text = f"The trusted proxy is {odd[0]!r:.80}; it must be like 127.0.0.1 or 10.0.0.0/8, or * for all."
            raise RequestError(text)
        self._hosts = None if hosts is None else {name_of(each) for each in (*hosts, self._host)} - {""}

    def find_host(self, scope: Scope, trusted: bool) -> None:
        """Set the name that clients use; raises an ApiError for a name that is not the server's.

        trusted: whether the request came from a trusted proxy.
        """
        headers = MutableHeaders(scope=scope)
        names = [headers.get("host", "")]
        if trusted and "x-forwarded-host" in headers:  # the nearest proxy's word is the last
            names.append(headers["x-forwarded-host"].rpartition(",")[2].strip())
        if self._hosts is not None and any(name_of(each) not in self._hosts for each in names):
            text = "This server is not known by that name. Whoever runs it can tell it: --root-path or --keys."
            raise ApiError(400, text, code="unknown_host")
        headers["host"] = self._host or names[-1]

    def find_path(self, scope: Scope) -> str:
        """Return the path below the root, whether or not the proxy took the root away; set the scope's by it."""
        headers, root = MutableHeaders(scope=scope), self._root or scope.get("root_path", "")
        for name in _FORWARDED:
            del headers[name]
        path: str = scope["path"]
        if root and path == root:
            raise ApiError(303, f"{root}/")  # relative links of the page need it
        path = path.removeprefix(root) if path.startswith(f"{root}/") else path
        scope.update(root_path=root, path=root + path, scheme=self._scheme or scope["scheme"])
        return path


def name_of(host: str) -> str:
    """Return a host, with or without port, in the one way in which it is compared."""
    name = re.sub(r":\d*$", "", host) if _network(host) is None else host
    name = name.strip("[]").rstrip(".").lower()
    found = _network(name)
    return name if found is None else str(found.network_address)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None

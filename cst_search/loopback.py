"""Proxies that the environment names, kept out of the way to this machine. Standard library only."""

from __future__ import annotations

import os
from urllib.request import getproxies, proxy_bypass

_HERE = ("127.0.0.1", "localhost", "::1")


def proxy_in_the_way() -> str | None:
    """Return the proxy that programs started from here would ask for http://127.0.0.1; None: they ask it directly."""
    proxies = getproxies()
    return None if proxy_bypass("127.0.0.1") else proxies.get("http") or proxies.get("all")


def reach_loopback_directly() -> None:
    """Add this machine's own addresses to ``NO_PROXY`` of this process and of what it starts, if a proxy is named.

    Else MLflow's client would look for a server on 127.0.0.1 behind the proxy, and Ray's processes for each other.
    """
    if proxy_in_the_way() is None:
        return
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [known, *_HERE]))

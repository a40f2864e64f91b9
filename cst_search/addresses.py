"""Addresses of databases and servers as they may be shown: without passwords. Standard library only."""

from __future__ import annotations

import re

# between `://user:` and the last @: a password that was not percent-encoded may itself hold an @ or a slash
_USER = re.compile(r"(?<=://)([^:/@]*):.*@")
_QUERY = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def shown_address(url: str) -> str:
    """``postgresql://u:pw@host/db?password=x`` -> ``postgresql://u:***@host/db?password=***``; never raises."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1:***@", url))

"""Addresses of databases and servers as they may be given and shown: without passwords. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path

from cst_search.errors import ConfigError

# between `://user:` and the last @: a password that was not percent-encoded may itself hold an @ or a slash
_USER = re.compile(r"(?<=://)([^:/@]*):.*@")
_QUERY = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def shown_address(url: str) -> str:
    """``postgresql://u:pw@host/db?password=x`` -> ``postgresql://u:***@host/db?password=***``; never raises."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1:***@", url))


def read_address(text: str) -> str:
    """An address as it was given, or with ``@FILE`` what that file holds: a password shows in no list of processes.

    Raises:
        ConfigError: there is no such file, or nothing in it.
    """
    if not text.startswith("@"):
        return text
    path = Path(text[1:]).expanduser()
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{text}: the file with the address cannot be read: {error}") from None
    if not found:
        raise ConfigError(f"{text}: the file with the address is empty")
    return found

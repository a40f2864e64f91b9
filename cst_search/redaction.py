"""Addresses of databases and servers as they may be given and shown: without passwords. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from cst_search.errors import ConfigError

DATABASES_OF_MLFLOW = ("sqlite", "postgresql", "mysql", "mssql")

# between `://user:` and the last @: a password that was not percent-encoded may itself hold an @ or a slash
_USER = re.compile(r"(?<=://)(?P<keep>[^:/@]*:)(?P<secret>.*)(?=@)")
# an HTTP server may be given a token alone, where a user would stand; the user of a database is no secret
_TOKEN = re.compile(r"(?P<keep>^https?://)(?P<secret>[^:/@?]+)(?=@)", re.IGNORECASE)
# what has no `://` is no address, but may be one that was cut
_BARE = re.compile(r"(?P<keep>^[^:/@]*:)(?P<secret>[^/].*)(?=@)")
_QUERY = re.compile(r"(?P<keep>[?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)(?P<secret>[^&]*)", re.IGNORECASE)


def shown_address(url: str) -> str:
    """``postgresql://u:pw@host/db?password=x`` -> ``postgresql://u:***@host/db?password=***``; never raises."""
    for pattern in (_USER, _TOKEN, _BARE, _QUERY):
        url = pattern.sub(r"\g<keep>***", url)
    return url


def without_password(text: str, url: str) -> str:
    """What a library says about an address, without the password of that address, however it is written there."""
    text = text.replace(url, shown_address(url))
    secrets = {match["secret"] for pattern in (_USER, _TOKEN, _BARE, _QUERY) for match in pattern.finditer(url)}
    for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


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

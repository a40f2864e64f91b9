"""Reading and display of database and server addresses without passwords. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from cst_search.errors import ConfigError

DATABASES_OF_MLFLOW = ("sqlite", "postgresql", "mysql", "mssql")

# text between `://user:` and the last @: a password that is not percent-encoded may itself contain an @ or a slash
_USER = re.compile(r"(?<=://)(?P<keep>[^:/@]*:)(?P<secret>.*)(?=@)")
# the address of an HTTP server may have a token in place of the user; the user of a database is no secret
_TOKEN = re.compile(r"(?P<keep>^https?://)(?P<secret>[^:/@?]+)(?=@)", re.IGNORECASE)
# text without `://` is no address, but may be a truncated one
_BARE = re.compile(r"(?P<keep>^[^:/@]*:)(?P<secret>[^/].*)(?=@)")
_QUERY = re.compile(r"(?P<keep>[?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)(?P<secret>[^&]*)", re.IGNORECASE)


def shown_address(url: str) -> str:
    """Mask passwords: ``postgresql://u:pw@host/db?password=x`` -> ``postgresql://u:***@host/db?password=***``.

    Never raises.
    """
    for pattern in (_USER, _TOKEN, _BARE, _QUERY):
        url = pattern.sub(r"\g<keep>***", url)
    return url


def without_password(text: str, url: str) -> str:
    """Remove an address's password from a library's message about it, in whatever form it is written there."""
    text = text.replace(url, shown_address(url))
    secrets = {match["secret"] for pattern in (_USER, _TOKEN, _BARE, _QUERY) for match in pattern.finditer(url)}
    for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def read_address(text: str) -> str:
    """Return the address, or for ``@FILE`` the content of that file, which keeps passwords out of process lists.

    Raises:
        ConfigError: the file is missing or empty.
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

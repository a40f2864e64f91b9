"""URLs of databases: that of a SQLite file, whatever is in its path, and whether two URLs name the same database."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy

from cst_search.errors import ConfigError
from cst_search.redaction import DATABASES_OF_MLFLOW, shown_address


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file, which SQLAlchemy reads as that path.

    Raises ConfigError if the installed SQLAlchemy cannot: before 2.1 it knows no ``%3F``.
    """
    full = os.fspath(path.absolute())
    quoted = full.replace("%", "%25").replace("?", "%3F")
    # at a URL that begins with sqlite:///, MLflow makes the folder that it names, which is another one when quoted
    url = f"{'sqlite' if quoted == full else 'sqlite+pysqlite'}:///{quoted}"
    if sqlalchemy.make_url(url).database != full:
        raise ConfigError(f"{full!r} has a ? or a % in it, which SQLAlchemy before 2.1 cannot open; use another folder")
    return url


def is_sqlite(url: str) -> bool:
    return sqlalchemy.make_url(url).get_backend_name() == "sqlite"


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite database; None: another kind, a database in memory, or one named as a SQLite URI."""
    made = sqlalchemy.make_url(url)
    path = made.database if made.get_backend_name() == "sqlite" else None
    return Path(path) if path and path != ":memory:" and not path.startswith("file:") else None


def check_apart(storage: str, tracking_uri: str) -> None:
    """Raise ConfigError if the studies and MLflow would have one database, in which each changes tables on its own."""
    if tracking_uri.startswith(DATABASES_OF_MLFLOW) and _place(storage) == _place(tracking_uri):
        raise ConfigError(
            f"studies and MLflow must have databases of their own; both have {shown_address(storage)}; "
            f"give another --storage or --tracking-uri"
        )


def _place(url: str) -> object:
    """Return what URLs of one database have in common; their users and drivers may differ."""
    made, file = sqlalchemy.make_url(url), sqlite_file(url)
    if file is not None:
        return os.path.realpath(file)
    # `options` may choose a schema of PostgreSQL
    return made.get_backend_name(), made.host, made.port or 5432, made.database, made.query.get("options")

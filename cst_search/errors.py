"""Error classes of cst-search, in one tree.

CstSearchError
├── UserError          the user must change something        (exit code 2)
│   ├── UnitError      a size, count or duration is misspelt
│   ├── ConfigError    a recipe, search space or flag is wrong
│   ├── DataError      the dataset has faults
│   └── StudyError     a study is missing, taken, or of another kind
└── RunError           the work itself failed                (exit code 1)

Each message gives the rule, the value and the remedy. The command line prints it without a traceback.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


class CstSearchError(Exception):
    """Base of every error that cst-search raises on purpose."""

    exit_code = 1


class UserError(CstSearchError):
    """The user must change something: a flag, a file, a name."""

    exit_code = 2


class UnitError(UserError):
    """A size, count or duration could not be read."""


class ConfigError(UserError):
    """A recipe, search space, configuration or flag is wrong."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return ``; did you mean 'NAME'?`` for the known name that is nearest, or has it in it; empty text if none is."""
    import difflib  # only now: nothing that goes well needs it

    asked, by_lower = name.lower(), {one.lower(): one for one in known}
    near = difflib.get_close_matches(asked, by_lower, n=1, cutoff=0.7)  # at the default 0.6, gpu would be cpu
    near = near or [one for one in by_lower if len(asked) > 2 and asked in one]
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def check_choice(flag: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ConfigError if the value is not one of ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"{flag} must be one of {', '.join(allowed)}; got {value!r}{did_you_mean(value, allowed)}")


class DataError(UserError):
    """The dataset has faults that stop the work."""


class StudyError(UserError):
    """A study is missing, in use, or was made with other objectives."""


class RunError(CstSearchError):
    """The work started and failed."""

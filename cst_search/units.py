"""Parsing and formatting of bytes, counts and durations. SI prefixes: powers of 1000; ``Ki``/``Mi``/``Gi``: of 1024."""

from __future__ import annotations

import math
import re

from cst_search.errors import UnitError

_BYTES = {
    "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_COUNT = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
# floating-point operations; a multiply-add (MAC) is two of them
_FLOPS = {
    prefix + unit + plural: size * each
    for prefix, size in (("M", 10**6), ("G", 10**9), ("T", 10**12))
    for unit, each in (("FLOP", 1), ("MAC", 2))
    for plural in ("", "S")
}
_SECONDS = {"S": 1, "M": 60, "MIN": 60, "H": 3600, "D": 86400}
_NUMBER = re.compile(r"^\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*$")


def _parse(text: str, table: dict[str, int], what: str, example: str) -> float:
    match = _NUMBER.match(text)
    value = float(match[1]) * table.get(match[2].upper(), 1) if match else math.nan
    if match and not 0 < value < math.inf:
        raise UnitError(f"{what} must be above zero and finite; got {text!r}, write for example {example}")
    if not match or match[2].upper() not in table:
        raise UnitError(f"{what} must be a positive number with a unit such as {example}; got {text!r}")
    return value


def _bare_number(value: str | float) -> float | None:
    """Return a number that was given without a unit; None: it has one, or is no number."""
    match = _NUMBER.match(value if isinstance(value, str) else f"{value:f}")
    return float(match[1]) if match and not match[2] and 0 < float(match[1]) < math.inf else None


def parse_bytes(text: str | float) -> int:
    """Return bytes: ``6GB`` -> 6e9, ``6GiB`` -> 6 * 2**30, also ``MB MiB KB KiB TB TiB`` and ``6000000000B``.

    A number without a unit is refused, from Python too: 6 would be six bytes, and who writes it means gigabytes.

    Raises UnitError.
    """
    bare = _bare_number(text)
    if bare is not None:
        # a number as large as a memory in bytes is bytes; a smaller one can only be meant in GB
        right = format_bytes(bare).replace(" ", "") if bare >= _BYTES["MB"] else f"{bare:g}GB"
        raise UnitError(f"a memory size must have a unit (GB, GiB, MB ...); got {text!r}; write {right}")
    return max(1, round(_parse(str(text), _BYTES, "a memory size", "6GB, 6GiB or 500MB")))


def parse_count(text: str | float) -> int:
    """Return a count: ``2M`` -> 2_000_000, ``500k`` -> 500_000, or a plain whole number. Raises UnitError."""
    plain = text if isinstance(text, str) else f"{text:f}"
    return max(1, round(_parse(plain, _COUNT, "a parameter count", "2M or 500k")))


def parse_flops(text: str | float) -> int:
    """Return floating-point operations: ``5GFLOP`` -> 5e9, ``2.5GMAC`` (multiply-adds) -> 5e9, also ``M`` and ``T``.

    A unit that does not say which of the two it counts is refused: both are called FLOPs, and differ by a factor of
    two.

    Raises UnitError.
    """
    match = _NUMBER.match(text if isinstance(text, str) else f"{text:f}")
    if match and match[2].upper() in ("", "M", "G", "T") and 0 < float(match[1]) < math.inf:
        n = f"{float(match[1]):g}{match[2].upper() or 'G'}"
        raise UnitError(
            f"a number of operations must have a unit (GFLOP, or GMAC for multiply-adds, which are two each); "
            f"got {text!r}; write {n}FLOP or {n}MAC"
        )
    return max(1, round(_parse(str(text), _FLOPS, "a number of operations", "5GFLOP, or 2.5GMAC (multiply-adds)")))


def parse_seconds(text: str | float) -> float:
    """Return seconds: from ``90s``, ``10m``, ``2h``, ``1d``, or from a number, which is in seconds.

    A text without a unit is refused: ``8`` on a command line may be hours as well as seconds.

    Raises UnitError.
    """
    bare = _bare_number(text)
    if isinstance(text, str) and bare is not None:
        raise UnitError(f"a duration must have a unit (s, m, h, d); got {text!r}; write {bare:g}m or {bare:g}h")
    plain = text if isinstance(text, str) else f"{text:f}s"
    return _parse(plain, _SECONDS, "a duration", "90s, 10m or 2h")


def format_bytes(n_bytes: float | None) -> str:
    """Return bytes as text, three significant digits in SI units: 3_120_000_000 -> ``3.12 GB``; None -> ``-``."""
    if n_bytes is None:
        return "-"
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(n_bytes) >= size * 0.9995:
            return f"{n_bytes / size:.3g} {unit}" if abs(n_bytes) / size < 999.5 else f"{n_bytes / size:.0f} {unit}"
    return f"{n_bytes:.0f} B"


def format_count(n: float | None) -> str:
    """Return a count as text: 1_234_567 -> ``1.23M``; None -> ``-``."""
    if n is None:
        return "-"
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(n) >= size * 0.9995:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"


def format_flops(n: float | None) -> str:
    """Return floating-point operations as text: 5_230_000_000 -> ``5.23 GFLOP``; None -> ``-``."""
    if n is None:
        return "-"
    unit, size = next((one for one in (("T", 10**12), ("G", 10**9)) if abs(n) >= one[1] * 0.9995), ("M", 10**6))
    return f"{n / size:.3g} {unit}FLOP" if abs(n) / size < 999.5 else f"{n / size:.0f} {unit}FLOP"


def format_seconds(seconds: float | None) -> str:
    """Return a duration as text: 3725 -> ``1h02m``, 95 -> ``1m35s``, 4.2 -> ``4s``; None -> ``-``."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"

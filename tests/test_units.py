"""Sizes, counts and durations as people write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cst_search.errors import UnitError, UserError
from cst_search.units import (
    format_bytes,
    format_count,
    format_flops,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_flops,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_bytes, "6GB", 6 * 10**9),  # SI: powers of 1000
        (parse_bytes, "6GiB", 6 * 2**30),  # binary: powers of 1024
        (parse_bytes, "500MB", 500 * 10**6),
        (parse_bytes, "500MiB", 500 * 2**20),
        (parse_bytes, "7KB", 7000),
        (parse_bytes, "7KiB", 7168),
        (parse_bytes, "1TB", 10**12),
        (parse_bytes, "1TiB", 2**40),
        (parse_bytes, "6gb", 6 * 10**9),  # case does not matter
        (parse_bytes, "6giB", 6 * 2**30),
        (parse_bytes, " 6 GB ", 6 * 10**9),  # nor do blanks
        (parse_bytes, "1.5GB", 1_500_000_000),
        (parse_bytes, ".5GB", 500_000_000),  # no leading zero
        (parse_bytes, "12345B", 12345),
        (parse_bytes, "1.1GB", 1_100_000_000),  # 1.1 * 1e9 is 1100000000.0000001 in floats: rounded
        (parse_bytes, "0.4B", 1),  # above zero stays above zero
        (parse_count, "2M", 2_000_000),
        (parse_count, "500k", 500_000),
        (parse_count, "500K", 500_000),
        (parse_count, "1.2B", 1_200_000_000),  # billions here, bytes above
        (parse_count, "77", 77),
        (parse_flops, "5GFLOP", 5 * 10**9),
        (parse_flops, "5 gflops", 5 * 10**9),  # the plural; not per second
        (parse_flops, "2.5GMAC", 5 * 10**9),  # a multiply-add is two operations
        (parse_flops, "1TFLOP", 10**12),
        (parse_flops, "800MMACs", 1_600_000_000),
        (parse_seconds, "90s", 90),
        (parse_seconds, "10m", 600),  # minutes here, not millions
        (parse_seconds, "10min", 600),
        (parse_seconds, "2h", 7200),
        (parse_seconds, "1d", 86400),
        (parse_seconds, 45, 45),  # from Python: seconds
        (parse_seconds, "0.5h", 1800),
    ],
)
def test_parse(parse: Callable[[str | float], float], text: str | float, value: float) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "given", "right"),
    [
        (parse_bytes, "6", "6GB"),  # six bytes hold nothing
        (parse_bytes, 6, "6GB"),  # from Python too
        (parse_bytes, "0.5", "0.5GB"),
        (parse_bytes, "500", "500GB"),
        (parse_bytes, "6000000000", "6GB"),  # large enough to be bytes
        (parse_bytes, 6e9, "6GB"),
        (parse_seconds, "8", "8m or 8h"),
        (parse_flops, "5", "5GFLOP or 5GMAC"),
        (parse_flops, 5, "5GFLOP or 5GMAC"),
        (parse_flops, "5G", "5GFLOP or 5GMAC"),  # operations or multiply-adds
        (parse_flops, "800m", "800MFLOP or 800MMAC"),
    ],
)
def test_a_number_without_a_unit_is_refused_and_the_right_form_is_shown(
    parse: Callable[[str | float], float], given: str | float, right: str
) -> None:
    with pytest.raises(UnitError, match="must have a unit") as raised:
        parse(given)
    assert str(raised.value).endswith(f"got {given!r}; write {right}")
    for form in right.split(" or "):
        assert parse(form) > 0  # what it says to write is taken


@pytest.mark.parametrize(
    ("parse", "example"),
    [(parse_bytes, "6GB"), (parse_count, "2M"), (parse_flops, "5GFLOP"), (parse_seconds, "90s")],
    ids=lambda v: getattr(v, "__name__", v),
)
@pytest.mark.parametrize(
    "text",
    [
        "",  # nothing
        "GB",  # unit without a number
        "six GB",
        "-6GB",  # negative
        "0",  # zero is no budget
        "0.0GB",
        "6GBit",  # an unknown unit that begins like a known one
        "6,5GB",  # decimal comma: refused rather than misread
        "1e9",  # no exponents, as E could be a unit
        "6GB 2",
        "nan",
        "inf",
        "9" * 400,  # overflows a float
    ],
)
def test_a_wrong_unit_is_an_error_that_shows_a_right_one(
    parse: Callable[[str], float], example: str, text: str
) -> None:
    with pytest.raises(UnitError, match=example) as raised:
        parse(text)
    assert repr(text) in str(raised.value)  # the value too
    assert isinstance(raised.value, UserError) and raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("render", "value", "text"),
    [
        (format_bytes, None, "-"),
        (format_bytes, 0, "0 B"),
        (format_bytes, 999, "999 B"),
        (format_bytes, 1000, "1 kB"),
        (format_bytes, 3_120_000_000, "3.12 GB"),
        (format_bytes, 999_400, "999 kB"),
        (format_bytes, 999_600, "1 MB"),  # rounds into the next unit, not to 1e+03 kB
        (format_bytes, 141_000_000_000, "141 GB"),
        (format_bytes, 2 * 10**15, "2000 TB"),  # beyond the last unit: still no exponent
        (format_bytes, -3_120_000_000, "-3.12 GB"),  # a difference
        (format_count, None, "-"),
        (format_count, 0, "0"),
        (format_count, 999, "999"),
        (format_count, 1_234_567, "1.23M"),
        (format_count, 999_700, "1M"),
        (format_count, 23_508_032, "23.5M"),  # ResNet-50 without its classifier
        (format_count, 1_500_000_000, "1.5B"),
        (format_flops, None, "-"),
        (format_flops, 5_230_000_000, "5.23 GFLOP"),
        (format_flops, 999_600_000, "1 GFLOP"),
        (format_flops, 999_600_000_000, "1 TFLOP"),
        (format_flops, 41_000, "0.041 MFLOP"),
        (format_flops, 8_640_000_000_000, "8.64 TFLOP"),
        (format_seconds, None, "-"),
        (format_seconds, 4.2, "4s"),
        (format_seconds, 59.7, "1m00s"),  # rounds first, splits then
        (format_seconds, 95, "1m35s"),
        (format_seconds, 3599.6, "1h00m"),
        (format_seconds, 3725, "1h02m"),
        (format_seconds, 90_000, "25h00m"),
        (format_seconds, -1, "0s"),  # a clock that was set back
    ],
)
def test_format(render: Callable[[float | None], str], value: float | None, text: str) -> None:
    assert render(value) == text


@pytest.mark.parametrize("n_bytes", [1, 999, 1000, 1500, 12_300_000, 6 * 10**9, 6 * 2**30, 3 * 10**12])
def test_what_is_shown_can_be_typed_again(n_bytes: int) -> None:
    assert parse_bytes(format_bytes(n_bytes)) == pytest.approx(n_bytes, rel=0.005)  # three significant digits


def test_no_size_is_shown_with_an_exponent() -> None:
    for exponent in range(13):
        for factor in (0.9994, 0.9995, 0.99951, 0.9999, 1, 1.0004, 9.995, 99.95, 99.96):
            assert "e" not in format_bytes(factor * 10**exponent)
            if exponent < 10:  # no model has 10**12 parameters
                assert "e" not in format_count(factor * 10**exponent)

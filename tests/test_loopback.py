"""A proxy does not stand between the parts of a search on one machine."""

from __future__ import annotations

import os

import pytest

from cst_search.commands import doctor
from cst_search.loopback import proxy_in_the_way, reach_loopback_directly


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"http_proxy": "http://me:secret@proxy:3128"}, "http://me:secret@proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:1"}, "http://proxy:1"),
        ({"ALL_PROXY": "socks5://proxy:1"}, "socks5://proxy:1"),
        ({"https_proxy": "http://proxy:1"}, None),
        ({"http_proxy": "http://proxy:1", "no_proxy": "example.org,127.0.0.1"}, None),
        ({"http_proxy": "http://proxy:1", "no_proxy": "example.org"}, "http://proxy:1"),
    ],
)
def test_a_proxy_is_found_named_and_passed_by(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: str | None
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for own in (name, name.upper()):
            monkeypatch.setenv(own, "")  # so that it is as it was after the test
            monkeypatch.delenv(own)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_in_the_way() == found
    told = [finding for finding in doctor._machine() if finding.name == "proxy"]
    assert len(told) == (found is not None) and not any("secret" in finding.text for finding in told)
    before = dict(os.environ)
    reach_loopback_directly()
    assert proxy_in_the_way() is None
    if found is None:
        assert dict(os.environ) == before
    else:
        assert os.environ["NO_PROXY"] == ",".join(
            filter(None, [environment.get("no_proxy"), "127.0.0.1,localhost,::1"])
        )

"""Which addresses need what before a server listens there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from asr_server.security_options import SecurityOptions, check_exposure, exposure_warning


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost", "127.0.0.1", "127.9.8.7", "::1", "[::1]", "::ffff:127.0.0.1", "unix:/run/asr"]
)
def test_loopback_needs_nothing(host: str) -> None:
    check_exposure(host, tls=False, tokens=False, allowed=False)
    assert exposure_warning(host, SecurityOptions()) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "", "10.0.0.5", "asr.example", "localhost.example", "127.1"])
def test_other_addresses_need_tls_or_a_word(host: str) -> None:
    with pytest.raises(ValueError, match=r"without TLS: anybody .*--certificate .*127\.0\.0\.1, or --allow-insecure"):
        check_exposure(host, tls=False, tokens=False, allowed=False)
    with pytest.raises(ValueError, match="without TLS: tokens could be read"):
        check_exposure(host, tls=False, tokens=True, allowed=False)
    check_exposure(host, tls=True, tokens=False, allowed=False)
    check_exposure(host, tls=False, tokens=False, allowed=True)


def test_what_an_operator_is_told() -> None:
    tls = SecurityOptions(Path("c"), Path("k"))
    told = [
        exposure_warning("0.0.0.0", options)
        for options in (
            SecurityOptions(allow_insecure=True),
            tls,
            replace(tls, tokens=Path("t")),
            replace(tls, client_ca=Path("a")),
        )
    ]
    assert told[0] and "plaintext" in told[0]
    assert told[1] and "everybody" in told[1]
    assert told[2:] == [None, None]


def test_half_a_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="certificate was given without its key"):
        SecurityOptions(certificate=Path("c"))
    with pytest.raises(ValueError, match="key was given without its certificate"):
        SecurityOptions(key=Path("k"))
    with pytest.raises(ValueError, match="client CA a needs TLS"):
        SecurityOptions(client_ca=Path("a"))

"""Which addresses are public."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed.video.fetch import is_public


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"],
)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.168.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::",
        "3fff::1",
        "3fff:fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses())
def test_never_more_than_python_calls_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    holds = getattr(address, "ipv4_mapped", None)
    if is_public(str(address)):
        assert (holds or address).is_global
        assert not (holds or address).is_multicast


@pytest.mark.parametrize("kind", ["private", "loopback", "link_local", "multicast", "reserved", "unspecified"])
@given(st.data())
def test_nothing_of_a_special_kind(kind: str, data: st.DataObject) -> None:
    address = data.draw(st.ip_addresses(v=4))
    if getattr(address, f"is_{kind}"):
        for text in (str(address), f"::ffff:{address}", f"64:ff9b::{address}"):
            assert not is_public(text)
        assert not is_public(str(ipaddress.IPv6Address(0x2002 << 112 | int(address) << 80)))


@pytest.mark.parametrize("text", ["", "host", "1.2.3", "1.2.3.4:80"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        is_public(text)

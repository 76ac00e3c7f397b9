"""Where a crawler may go and how fast: allowed addresses, and the time between two requests.

A page can name any host, and a host name can resolve to any address, also to one in the user's own network. Each
address is therefore looked up and checked here, and the connection uses the address that was checked. (A second
look-up after the check could give another address.) The environment variable `EMBEDRAG_CRAWL_ALLOW_PRIVATE=1` allows
private addresses, for tests against a local server.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections import defaultdict
from collections.abc import Callable

import httpx

AGENT = "EmbedRAG"  # the name that robots.txt is asked about, and the first word of the user agent
LONGEST_DELAY = 60.0  # seconds between requests; a host that asks for more is not read
# IPv6 addresses with an IPv4 address in their last 32 bits: compatible, translated, NAT64.
_WITH_IPV4 = [ipaddress.ip_network(text) for text in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96")]
_ISATAP = (0x00005EFE, 0x02005EFE)  # the third 32 bits of an IPv6 address that has an IPv4 address in the last 32
# Public by Python's list, and not public: NAT64 of a network's own, site-local, routes of SRv6, examples, relays of
# 6to4, and the address at which Azure answers its own machines.
_PRIVATE = [
    ipaddress.ip_network(text)
    for text in (
        "64:ff9b:1::/48",
        "fec0::/10",
        "5f00::/16",
        "3fff::/20",
        "192.88.99.0/24",
        "168.63.129.16/32",
    )
]


class PageError(Exception):
    """Why a page was not read. The crawl goes on with the next page."""


class StatusError(PageError):
    """The server refused with a status 4xx, which another try would not change."""


class BusyError(PageError):
    """The page could not be read now; another try may succeed.

    Attributes:
        wait: seconds that the server asked for; None when it asked for none.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def check_url(text: str) -> httpx.URL:
    """The URL without its fragment.

    Raises:
        PageError: when it is not http or https, has no host, has a port that no machine has, or has a password (the
            output would show it).

    >>> str(check_url("https://Example.org/a#b"))
    'https://example.org/a'
    """
    try:
        url = httpx.URL(text.strip()).copy_with(fragment=None)
        host, _ = url.host, url.port
    except (httpx.InvalidURL, ValueError) as error:
        raise PageError(f"not a URL: {error}") from None
    if url.scheme not in ("http", "https"):
        raise PageError(f"{url.scheme or 'no'} scheme: only http and https are read")
    if not host:
        raise PageError("no host in the URL")
    if url.port is not None and not 0 < url.port < 65536:
        raise PageError(f"port {url.port} does not exist")
    if url.userinfo:
        raise PageError("a URL with user name or password is not read")
    return url


def is_public(address: str) -> bool:
    """Whether an address belongs to the public network. An IPv4 address inside an IPv6 one is checked too.

    >>> [is_public(a) for a in ("93.184.216.34", "10.1.2.3", "169.254.169.254", "::1", "::ffff:127.0.0.1")]
    [True, False, False, False, False]
    >>> is_public("64:ff9b::7f00:1"), is_public("2606:4700::1111")
    (False, True)
    >>> [is_public(a) for a in ("::127.0.0.1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "fec0::1", "168.63.129.16")]
    [False, False, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if any(ip in network for network in _WITH_IPV4) or (int(ip) >> 32 & 0xFFFFFFFF) in _ISATAP:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _PRIVATE)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order in which they should be tried.

    Raises:
        PageError: when there are none, or when one of them is private.
        BusyError: when the look-up failed for a reason that may be temporary.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        reason = f"host {host} not found ({error.strerror})"
        raise (BusyError(reason) if error.errno == socket.EAI_AGAIN else PageError(reason)) from None
    except (UnicodeError, OSError) as error:
        raise PageError(f"host {host} not found ({error})") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if os.environ.get("EMBEDRAG_CRAWL_ALLOW_PRIVATE") != "1":
        for address in addresses:
            if not is_public(address):
                raise PageError(f"{host} is {address}, a private address, so it is not read")
    return addresses


class Pace:
    """At most one request every `delay` seconds to one host. A host may ask for a longer delay."""

    def __init__(self, delay: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        """Begin without any request.

        Args:
            delay: seconds from one request to the next.
            clock: gives the time in seconds; it never goes back.
            sleep: waits the given number of seconds.
        """
        self._delays: dict[str, float] = defaultdict(lambda: delay)
        self._last: dict[str, float] = {}
        self._clock, self._sleep = clock, sleep

    def slow_down(self, host: str, delay: float) -> None:
        """Leave at least `delay` seconds between two requests to `host`."""
        self._delays[host] = max(self._delays[host], delay)

    def wait(self, host: str) -> None:
        """Return when the next request to `host` may go out. The caller must then send it."""
        if host in self._last:
            rest = self._last[host] + self._delays[host] - self._clock()
            if rest > 0:
                self._sleep(rest)
        self._last[host] = self._clock()

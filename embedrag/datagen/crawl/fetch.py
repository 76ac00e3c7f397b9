"""One page from the network, or the reason why there is none.

A server is not trusted. Its answer may be endless, slow, compressed a thousandfold, or a redirect into the user's own
network. Every redirect is therefore checked like a first URL (scheme, robots.txt, address, delay), and a body is read
in pieces and dropped when it grows too long. One time limit covers a whole request. The exchange is asynchronous for
this limit, because the time limits of sockets start again with each byte. Proxies and cookies are not used.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx
import tenacity
from protego import Protego

from embedrag import __version__
from embedrag.datagen.crawl.bounded_gzip import unpack
from embedrag.datagen.crawl.politeness import (
    AGENT,
    LONGEST_DELAY,
    BusyError,
    Pace,
    PageError,
    StatusError,
    check_url,
    resolve,
)

HTML = ("text/html", "application/xhtml+xml")
XML = ("application/xml", "text/xml", "application/gzip", "application/x-gzip")
MAX_REDIRECTS = 5
ATTEMPTS = 4
LONGEST_WAIT = 120.0  # seconds that a server may ask for before another try
ROBOTS_BYTES = 512_000
_PASSING = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Page:
    """What a URL gave.

    Attributes:
        url: where the redirects ended.
        kind: content type.
        charset: character set that the server named, or empty.
        body: as it came, without compression.
        retry_after: seconds that the server asks to wait; None when it asks for none.
        location: target of a redirect, or empty.
    """

    url: str
    kind: str
    charset: str
    body: bytes
    retry_after: float | None = None
    location: str = ""


class Fetcher:
    """Reads pages, one at a time.

    Attributes:
        contact: mail address or URL that every server receives; None: nothing is sent.
        max_bytes: longest body, unpacked.
    """

    def __init__(
        self,
        contact: str | None = None,
        delay: float = 1.0,
        timeout: float = 30.0,
        max_bytes: int = 5_000_000,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take the settings. Nothing is sent yet.

        Args:
            contact: mail address or URL of the person who crawls; part of the user agent.
            delay: seconds from one request to a host to the next; robots.txt may ask for more.
            timeout: seconds for one request, from the look-up of its host to its last byte.
            max_bytes: longest body, unpacked.
            clock: gives the time in seconds, for the delay.
            sleep: waits the given number of seconds.
        """
        self.contact = contact
        about = "; ".join(part for part in ("glossary crawler", contact) if part)
        self._agent = f"{AGENT}/{__version__} ({about})"
        self.max_bytes = max_bytes
        self._timeout, self._sleep = timeout, sleep
        self._pace = Pace(delay, clock, sleep)
        self._robots: dict[str, Protego | str | None] = {}
        self._left: dict[str, str] = {}
        self._tls: ssl.SSLContext | bool = False  # made for the first https URL, because it reads many certificates

    def get(self, url: str, kinds: Collection[str] = HTML) -> Page:
        """Read a page that robots.txt allows, and follow its redirects.

        Args:
            url: http or https.
            kinds: content types that are read.

        Raises:
            PageError: with the reason.
        """
        return self._follow(url, kinds, robots=True)

    def ask(self, url: str) -> Page:
        """Read the JSON of an interface that is made for programs. The caller asks robots.txt about the page itself."""
        return self._follow(url, ("application/json",), robots=False)

    def pause(self, seconds: float) -> None:
        """Wait."""
        self._sleep(seconds)

    def obey(self, url: str) -> None:
        """Raise PageError when robots.txt of the host forbids the URL, or when robots.txt can't be read."""
        parsed = check_url(url)
        origin = str(parsed.copy_with(raw_path=b"/robots.txt"))
        if origin not in self._robots:
            self._robots[origin] = self._read_robots(origin)
        rules = self._robots[origin]
        if isinstance(rules, str):
            raise PageError(rules)
        if rules is not None and not rules.can_fetch(str(parsed), AGENT):
            raise PageError("robots.txt forbids it")

    def _read_robots(self, url: str) -> Protego | str | None:
        """The rules; None when there are none; or the reason why nothing of the host is read."""
        try:
            page = self._follow(url, (), robots=False)
        except StatusError:
            return None
        except PageError as error:
            return f"robots.txt can't be read ({error}), so no page of the host is read"
        rules = Protego.parse(page.body.decode("utf-8-sig", errors="replace"))
        delay = rules.crawl_delay(AGENT) or 0.0
        if delay > LONGEST_DELAY:
            return f"robots.txt asks for {delay:g} s between two requests, which is too long"
        self._pace.slow_down(httpx.URL(url).host, delay)
        return rules

    def _follow(self, url: str, kinds: Collection[str], robots: bool) -> Page:
        seen: set[str] = set()
        while True:
            parsed = check_url(url)
            if str(parsed) in seen:
                raise PageError("redirects in a circle")
            if len(seen) > MAX_REDIRECTS:
                raise PageError(f"more than {MAX_REDIRECTS} redirects")
            seen.add(str(parsed))
            if robots:
                self.obey(str(parsed))
            page = self._try(parsed, kinds)
            if not page.location:
                return page
            try:
                url = str(parsed.join(page.location))
            except (httpx.InvalidURL, ValueError):
                raise PageError(f"redirects to something that is not a URL: {page.location[:80]!r}") from None

    def _try(self, url: httpx.URL, kinds: Collection[str]) -> Page:
        """One request, repeated with growing pauses while the server says that it is busy."""
        if url.host in self._left:
            raise PageError(self._left[url.host])
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=_pause,
            retry=tenacity.retry_if_exception_type(BusyError),
            sleep=self._sleep,
            reraise=True,
        )
        return retrying(self._once, url, kinds)

    def _once(self, url: httpx.URL, kinds: Collection[str]) -> Page:
        self._pace.wait(url.host)
        try:
            return asyncio.run(asyncio.wait_for(self._exchange(url, kinds), self._timeout))
        except (asyncio.TimeoutError, TimeoutError):
            raise PageError(f"not complete after {self._timeout:g} s") from None
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
            raise PageError(f"can't be requested: {error}") from None
        except httpx.HTTPError as error:
            raise BusyError(f"no answer: {error or type(error).__name__}") from None
        except BusyError as error:
            if error.wait is not None and error.wait > LONGEST_WAIT:
                self._left[url.host] = f"{error}; {url.host} asks to wait {error.wait:.0f} s"
                raise PageError(self._left[url.host]) from None
            raise
        except (OSError, ValueError, OverflowError) as error:  # of the system, for an address that nobody foresaw
            raise PageError(f"can't be requested: {error}") from None

    async def _exchange(self, url: httpx.URL, kinds: Collection[str]) -> Page:
        """Send a request to the addresses that were checked, and to no other."""
        host = url.raw_host.decode("ascii")
        if url.scheme == "https" and self._tls is False:
            self._tls = httpx.create_ssl_context()
        headers = {
            "Host": url.netloc.decode("ascii"),
            "User-Agent": self._agent,
            "Accept": ", ".join(kinds) or "*/*",
            "Accept-Encoding": "gzip",
        }
        limits = httpx.Timeout(min(10.0, self._timeout))
        *others, last = await resolve(host, url.port or (443 if url.scheme == "https" else 80))
        # The transport, not a client: a client would already look up the target of a redirect.
        async with httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False) as transport:
            for address in [*others, last]:
                request = httpx.Request("GET", url.copy_with(host=address), headers=headers)
                request.extensions = {"sni_hostname": host, "timeout": limits.as_dict()}
                try:
                    answer = await transport.handle_async_request(request)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    if address == last:
                        raise
                    continue
                try:
                    return await self._read(answer, str(url), kinds)
                finally:
                    await answer.aclose()
        raise PageError("the host has no address")

    async def _read(self, answer: httpx.Response, url: str, kinds: Collection[str]) -> Page:
        code, headers = answer.status_code, answer.headers
        wait = retry_after(headers.get("retry-after", ""))
        if code in _PASSING:
            raise BusyError(f"status {code}", wait)
        if code in (301, 302, 303, 307, 308) and headers.get("location"):
            return Page(url, "", "", b"", location=headers["location"])
        if code != 200:
            raise (StatusError if 400 <= code < 500 else PageError)(f"status {code}")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kinds and kind not in kinds:
            raise PageError(f"content type {kind or 'missing'} is not read")
        packing = headers.get("content-encoding", "identity").strip().lower()
        if packing not in ("identity", "gzip", "x-gzip", ""):
            raise PageError(f"content encoding {packing} is not read")
        most = self.max_bytes if kinds else ROBOTS_BYTES  # only the beginning of robots.txt counts
        body = bytearray()
        unpacker = zlib.decompressobj(31) if "gzip" in packing else None
        async for piece in answer.aiter_raw():
            body += unpack(unpacker, piece, most + 1 - len(body)) if unpacker else piece
            if len(body) > most:
                if kinds:
                    raise PageError(f"larger than {most / 1e6:g} MB, so it was not read to its end")
                break
        return Page(url, kind, answer.charset_encoding or "", bytes(body[:most]), wait)


def retry_after(text: str) -> float | None:
    """Seconds to wait, from a header that holds seconds or a date; None when it can't be read.

    >>> retry_after("7"), retry_after("Thu, 01 Jan 1970 00:00:09 GMT"), retry_after("soon")
    (7.0, 0.0, None)
    """
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, BusyError) and error.wait is not None else 0.0
    return max(asked, tenacity.wait_exponential_jitter(initial=1, max=30)(state))

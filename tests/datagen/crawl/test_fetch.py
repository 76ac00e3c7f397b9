"""Pages from a real server on this machine: redirects, faults of servers, robots.txt, the delay between requests."""

from __future__ import annotations

import gzip
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedrag.datagen.crawl import fetch, politeness
from embedrag.datagen.crawl.politeness import PageError
from tests.datagen.crawl.server import PAGE, Clock, Handler, Site, fetcher


def refusal(clock: Clock, url: str, **more: Any) -> str:
    with pytest.raises(PageError) as error:
        fetcher(clock, **more).get(url)
    return str(error.value)


def test_page_is_read_with_an_agent_that_names_project_and_contact(site: Site, clock: Clock) -> None:
    site.page("/a")
    assert fetcher(clock, contact="me@example.org").get(site.url("/a")).body.decode() == PAGE
    assert site.asked == ["/robots.txt", "/a"]
    (agent,) = site.agents
    assert agent.startswith("EmbedRAG/") and "me@example.org" in agent


def test_redirects_are_followed_a_circle_and_a_long_chain_are_not(site: Site, clock: Clock) -> None:
    site.page("/end")
    for source, target in {"/go": "/end", "/ring": "/ring2", "/ring2": "/ring"}.items():
        site.page(source, "", status=302, Location=target)
    for i in range(9):
        site.page(f"/chain{i}", "", status=301, Location=f"/chain{i + 1}")
    assert fetcher(clock).get(site.url("/go")).url == site.url("/end")
    assert "circle" in refusal(clock, site.url("/ring"))
    assert "more than 5 redirects" in refusal(clock, site.url("/chain0"))


def test_redirect_to_what_is_not_http_is_refused(site: Site, clock: Clock) -> None:
    for target, reason in {
        "file:///etc/passwd": "only http",
        "http://u:p@h/": "password",
        "mailto:me@example.org": "only http",
        "http://h:x/": "not a URL",
        "http://h:99999/": "port 99999 does not exist",
        "http://h:0/": "port 0 does not exist",
    }.items():
        site.page("/go", "", status=302, Location=target)
        assert reason in refusal(clock, site.url("/go"))


def test_private_address_is_refused(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDRAG_CRAWL_ALLOW_PRIVATE", raising=False)
    for host in ("localhost", "169.254.169.254", "[::1]", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0"):
        assert "private address" in refusal(clock, f"http://{host}:1/"), host


PRIVATE = (
    "10.1.2.3 100.64.0.1 127.0.0.1 169.254.169.254 168.63.129.16 192.88.99.1 224.0.0.1 ::1 :: ::127.0.0.1 "
    "::ffff:10.0.0.1 ::ffff:0:7f00:1 64:ff9b::7f00:1 64:ff9b:1::7f00:1 2002:7f00:1:: "
    "2001:0:4136:e378:8000:63bf:3fff:fdd2 "
    "fec0::1 fc00::1 fe80::1 ff02::1 2a00::5efe:a00:1 2a00::200:5efe:a00:1 5f00::1 3fff::1 2001:db8::1 fe80::1%eth0"
)
PUBLIC = "93.184.216.34 168.63.129.17 2606:4700::1111 64:ff9b::5db8:d822 2002:5db8:d822::1 2a00::5efe:5db8:d822"


def test_addresses_that_do_not_belong_to_the_public_network() -> None:
    assert [address for address in PRIVATE.split() if politeness.is_public(address)] == []
    assert [address for address in PUBLIC.split() if not politeness.is_public(address)] == []


@given(
    st.one_of(
        st.text(max_size=30),
        st.builds(
            "{}://{}{}:{}/{}".format,
            st.sampled_from(["http", "https", "HTTP", "ftp", "javascript", ""]),
            st.sampled_from(["", "u:p@", "@"]),
            st.text(alphabet="a.-_[]%:\x00é。０٣xn", max_size=70),
            st.one_of(st.integers(-1, 10**30).map(str), st.text(max_size=4)),
            st.text(max_size=5),
        ),
    )
)
def test_no_url_ends_a_crawl(url: str) -> None:
    """Each URL is read, or refused with a reason; the look-up of names is left out."""

    async def nowhere(host: str, port: int) -> list[str]:
        if port > 65535:
            raise OverflowError("port must be 0-65535")
        raise ValueError("embedded null byte")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "resolve", nowhere)
        with pytest.raises(PageError):
            fetcher(Clock()).get(url)


def test_redirect_to_a_private_address_is_refused(site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host counts as public here; the target of the redirect does not."""
    monkeypatch.delenv("EMBEDRAG_CRAWL_ALLOW_PRIVATE")
    monkeypatch.setattr(politeness, "is_public", lambda address: address == "127.0.0.1")
    site.page("/go", "", status=302, Location="http://127.0.0.2:1/secret")
    site.page("/ok")
    assert fetcher(clock).get(site.url("/ok")).body
    assert "127.0.0.2, a private address" in refusal(clock, site.url("/go"))


def test_busy_server_is_asked_again_after_the_time_it_names(site: Site, clock: Clock) -> None:
    states = iter([(429, {"Retry_After": "7"}), (500, {}), (200, {"Content-Type": "text/html"})])

    def answer(handler: Handler) -> None:
        status, headers = next(states)
        handler.give(status, PAGE.encode(), headers)

    site.answers["/busy"] = answer
    assert fetcher(clock).get(site.url("/busy")).body.decode() == PAGE
    assert site.times("/busy") == 3 and max(clock.slept) >= 7


def test_server_that_stays_busy_or_asks_for_an_hour_is_not_asked_again(site: Site, clock: Clock) -> None:
    site.page("/busy", status=503)
    site.page("/hour", status=429, Retry_After="3600")
    site.page("/fine")
    reader = fetcher(clock)
    for path, reason in (("/busy", "503"), ("/hour", "3600"), ("/fine", "3600")):
        with pytest.raises(PageError, match=reason):
            reader.get(site.url(path))
    assert (site.times("/busy"), site.times("/hour"), site.times("/fine")) == (4, 1, 0)


def test_status_type_and_encoding_that_are_not_read_are_named(site: Site, clock: Clock) -> None:
    site.page("/pdf", kind="application/pdf")
    site.page("/br", Content_Encoding="br")
    site.page("/gone", status=410)
    site.page("/bad", b"no gzip", Content_Encoding="gzip")
    for path, reason in (("/pdf", "pdf"), ("/br", "br"), ("/gone", "410"), ("/none", "404"), ("/bad", "gzip")):
        assert reason in refusal(clock, site.url(path))


def test_endless_page_is_cut_and_not_read_to_its_end(site: Site, clock: Clock) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        for _ in range(1600):
            handler.wfile.write(b"x" * 65536)
            site.sent += 65536

    site.answers["/endless"] = endless
    assert "larger than 1 MB" in refusal(clock, site.url("/endless"), max_bytes=1_000_000)
    assert site.sent < 50_000_000


def test_gzip_is_read_and_a_gzip_bomb_is_not(site: Site, clock: Clock) -> None:
    site.page("/zip", gzip.compress(PAGE.encode()), Content_Encoding="gzip")
    site.page("/bomb", gzip.compress(b"\0" * 200_000_000, 1), Content_Encoding="gzip")
    assert fetcher(clock).get(site.url("/zip")).body.decode() == PAGE
    assert "larger than" in refusal(clock, site.url("/bomb"))


@pytest.mark.parametrize("part", ["head", "body"])
def test_page_that_comes_too_slowly_ends_after_the_time_limit(part: str, site: Site, clock: Clock) -> None:
    def drip(handler: Handler) -> None:
        if part == "body":
            handler.send_response(200)
            handler.send_header("Content-Type", "text/html")
            handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)

    site.answers["/drip"] = drip
    start = time.monotonic()
    assert "not complete after 0.4 s" in refusal(clock, site.url("/drip"), timeout=0.4)
    assert time.monotonic() - start < 2 and site.times("/drip") == 1


def test_host_that_is_not_there_is_named_after_some_tries(site: Site, clock: Clock) -> None:
    url = site.url("/")
    site.shutdown()
    site.server_close()
    assert "no answer" in refusal(clock, url)


def test_one_request_a_second_goes_to_a_host_or_fewer_when_it_asks(site: Site, clock: Clock) -> None:
    arrivals: list[float] = []
    site.answers = dict.fromkeys(
        ("/a", "/b", "/c"),
        lambda handler: (arrivals.append(clock.now), handler.give(200, b"", {"Content-Type": "text/html"})),
    )
    reader = fetcher(clock)
    for path in ("/a", "/b", "/c"):
        reader.get(site.url(path))
    assert arrivals == [1, 2, 3]  # robots.txt came first
    site.page("/robots.txt", "User-agent: *\nCrawl-delay: 5\n", "text/plain")
    slow = fetcher(clock)
    for path in ("/a", "/b"):
        slow.get(site.url(path))
    assert arrivals[4] - arrivals[3] == 5


def test_robots_txt_forbids_for_everybody_or_by_name(site: Site, clock: Clock) -> None:
    site.page("/robots.txt", "User-agent: *\nDisallow: /closed\nUser-agent: EmbedRAG\nDisallow: /*.php\n", "text/plain")
    for path in ("/closed", "/x.php"):
        site.page(path)
    reader = fetcher(clock)
    assert reader.get(site.url("/closed")).body
    with pytest.raises(PageError, match=r"robots.txt forbids"):
        reader.get(site.url("/x.php"))
    assert site.times("/x.php") == 0 and site.times("/robots.txt") == 1


@pytest.mark.parametrize(("status", "allowed"), [(404, True), (403, True), (500, False), (429, False)])
def test_robots_txt_that_can_not_be_read(status: int, allowed: bool, site: Site, clock: Clock) -> None:
    site.page("/robots.txt", "", status=status)
    site.page("/a")
    if allowed:
        assert fetcher(clock).get(site.url("/a")).body
    else:
        assert "robots.txt can't be read" in refusal(clock, site.url("/a"))
        assert site.times("/a") == 0

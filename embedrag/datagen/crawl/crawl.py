"""Terms and definitions of glossaries in the web, as a table and as training rows.

A crawl is a list of pages, which are read one after the other. A page gives pairs, or a reason why there are none; a
page never ends the crawl. The pairs are kept page by page in `crawl_state.jsonl`, so that the same call continues
after an interruption. The two outputs are written at the end, each whole or not at all. Faults of the network are
handled in `fetch`, faults of markup in `extract`. The packages of the extra `crawl` are imported on the first use.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from embedrag.datagen.crawl.state import NAME, CrawlSettings, State
from embedrag.errors import UserError, all_problems, need, raise_all
from embedrag.runtime.console import now, say
from embedrag.runtime.files import atomic_file, check_targets, write_lines

if TYPE_CHECKING:
    from embedrag.datagen.crawl.fetch import Fetcher
    from embedrag.datagen.crawl.pages import PageReport

PACKAGES = ("httpx", "tenacity", "selectolax", "protego", "charset_normalizer")
SOURCES = ("wikipedia_glossary",)
LANGUAGES = ("en", "ko", "zh", "de", "fr", "ja", "es")
OUTPUTS = ("glossary.csv", "pairs.jsonl")
WRITTEN = "written"  # the entry of the state with the checksums of the outputs
FOLDER = "data"  # a training without a data set looks for pairs.jsonl there
PACKAGED_PAGE = "data/glossary_page.html"
_CONTACT = re.compile(r"[!-'*-~]+( [!-'*-~]+)*")  # what a user agent may contain


@dataclass(frozen=True)
class CrawlResult:
    """What `crawl` wrote.

    Attributes:
        output_dir: the folder with glossary.csv and pairs.jsonl.
        pairs: how many pairs the two files have; with 0 they are not written.
        pages: what each page gave, in the order in which the pages were read.
    """

    output_dir: Path
    pairs: int
    pages: tuple[PageReport, ...]

    @property
    def failed(self) -> int:
        """How many pages could not be read; the same call tries them again."""
        return sum(page.failed for page in self.pages)


def crawl(
    output_dir: str | Path = FOLDER,
    *,
    sources: Sequence[str] = (),
    urls: Sequence[str] = (),
    limit_per_source: int = 500,
    languages: Sequence[str] = LANGUAGES,
    contact: str | None = None,
    delay: float = 1.0,
    timeout: float = 30.0,
    max_mb: float = 5.0,
    overwrite: bool = False,
) -> CrawlResult:
    """Read glossaries and write their terms and definitions.

    Args:
        output_dir: folder for glossary.csv and pairs.jsonl.
        sources: known lists of pages: `wikipedia_glossary`.
        urls: pages to read, or sitemaps of pages.
        limit_per_source: pairs of one source, at most; a source is a list, or one of `urls`.
        languages: languages of the Wikipedias that are read in turn.
        contact: your mail address or URL; every server receives it.
        delay: seconds between two requests to a host, at least.
        timeout: seconds that one request may take, to its last byte.
        max_mb: size of the largest page that is read, unpacked, in MB.
        overwrite: delete the crawl in the folder and start from the beginning.

    Raises:
        UserError: when an argument is wrong, when the folder holds something else, or when a package is missing.
        RunError: when a file can't be written.
    """
    problems = [
        UserError(f"unknown; accepted is {', '.join(SOURCES)}", "sources", name)
        for name in sources
        if name not in SOURCES
    ]
    if not (sources or urls):
        problems.append(
            UserError(f"nothing to read; name `sources` ({SOURCES[0]}) or `urls`; `dry_run` reads a packaged page")
        )
    if contact is not None and not (3 <= len(contact) <= 200 and _CONTACT.fullmatch(contact)):
        reason = "must be a mail address or URL of 3 to 200 ASCII characters, without parentheses and line breaks"
        problems.append(UserError(reason, "contact"))
    raise_all(problems)
    need("crawl", *PACKAGES)
    from embedrag.datagen.crawl.fetch import Fetcher

    settings = CrawlSettings(tuple(sources), tuple(urls), tuple(languages), limit_per_source)
    fetcher = Fetcher(contact, delay, timeout, round(max_mb * 1e6))
    return crawl_with(fetcher, Path(output_dir).expanduser(), settings, overwrite=overwrite)


def crawl_with(
    fetcher: Fetcher, folder: Path, settings: CrawlSettings, *, overwrite: bool = False, wiki: str | None = None
) -> CrawlResult:
    """The same with a fetcher of the caller.

    Args:
        fetcher: reads the pages.
        folder: for the outputs.
        settings: what is read.
        overwrite: delete the crawl in the folder and start from the beginning.
        wiki: address of Wikipedia, with `{language}` in it; None: the real one.

    Raises:
        UserError: when the folder holds something else, or when a language is unknown.
        RunError: when a file can't be written.
    """
    from embedrag.datagen.crawl import wikipedia
    from embedrag.datagen.crawl.pages import Crawl

    wikipedia.check_languages(settings.languages)
    _check_outputs(folder, overwrite or (folder / NAME).exists())
    if settings.sources and not fetcher.contact:
        say("note: Wikipedia asks who runs a program; set `contact` to your mail address or URL")
    state = State(folder / NAME, settings, overwrite)
    try:
        _check_unchanged(folder, state)
        work = Crawl(settings, fetcher, state, wiki or wikipedia.BASE)
        work.run()
        if work.rows:
            write(folder, work.rows)
            state.keep(WRITTEN, **{name: _digest(folder / name) for name in OUTPUTS})
    finally:
        state.close()
    return CrawlResult(folder, len(work.rows), tuple(work.pages))


def dry_run(
    output_dir: str | Path | None = None, *, limit_per_source: int = 500, overwrite: bool = False
) -> list[tuple[str, str]]:
    """Read a page that comes with the package, instead of the network.

    Args:
        output_dir: folder for the outputs; None: nothing is written.
        limit_per_source: pairs, at most.
        overwrite: replace outputs that exist.

    Returns:
        (term, definition) of the page, in its order.

    Raises:
        UserError: when an output exists, or when a package is missing.
    """
    need("crawl", *PACKAGES)
    from embedrag.datagen.crawl.extract import extract

    page = files("embedrag.datagen.crawl") / PACKAGED_PAGE
    pairs = extract(page.read_text(encoding="utf-8"))[:limit_per_source]
    if output_dir is not None:
        folder = Path(output_dir).expanduser()
        _check_outputs(folder, overwrite)
        write(folder, [(term, text, f"embedrag/datagen/crawl/{PACKAGED_PAGE}", now()) for term, text in pairs])
    return pairs


def write(folder: Path, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Write (term, definition, URL, time) as a table and as training rows, each whole or not at all."""
    with atomic_file(folder / "glossary.csv") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["term", "definition", "source_url", "retrieved_at"])
        table.writerows(rows)
    lines = [
        {"anchor": term, "positive": text, "term": term, "source": source, "retrieved_at": time}
        for term, text, source, time in rows
    ]
    write_lines(folder / "pairs.jsonl", lines)


def _check_outputs(folder: Path, overwrite: bool) -> None:
    """Refuse a folder in which an output exists or can't be written."""
    all_problems(partial(check_targets, {"output_dir": str(folder / name)}, [], overwrite) for name in OUTPUTS)


def _check_unchanged(folder: Path, state: State) -> None:
    """Refuse to write over an output that somebody has edited since it was written."""
    written = state.done.get(WRITTEN, {})
    changed = [name for name in OUTPUTS if name in written and (folder / name).is_file()]
    changed = [name for name in changed if _digest(folder / name) != written[name]]
    if changed:
        raise UserError(
            f"{', '.join(changed)} changed since the crawl wrote it; move it to another place, or start again with "
            "`overwrite`",
            "output_dir",
            folder,
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""`embedrag crawl`: terms and definitions of glossaries in the web -> a table and training rows.

A crawl is a list of pages, read one after the other; each ends as pairs or as a reason, never as the end of the crawl.
What was taken is kept page by page (`crawl_state.jsonl`), so an interrupted crawl goes on with the same command, and
the two outputs are written whole at the end. Faults of the network are dealt with in `fetch`, those of markup in
`extract`. Packages of the extra `crawl` are imported when the command runs.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from embedrag.commands.crawl import CrawlOptions
from embedrag.datagen.crawl.state import NAME, State
from embedrag.errors import UserError, need
from embedrag.runtime.console import now, say
from embedrag.runtime.files import atomic_file, check_targets, write_lines

if TYPE_CHECKING:
    from embedrag.datagen.crawl.fetch import Fetcher

PACKAGES = ("httpx", "tenacity", "selectolax", "protego", "charset_normalizer")
OUTPUTS = ("glossary.csv", "pairs.jsonl")
WRITTEN = "written"  # the state's note of what the outputs were
FOLDER = "data"  # where training looks for pairs.jsonl when no data set is named


def run(options: CrawlOptions) -> int:
    """`embedrag crawl`: 0 when something was extracted, 1 otherwise."""
    need("crawl", *PACKAGES)
    if options.dry_run:
        return dry_run(options)
    from embedrag.datagen.crawl.fetch import Fetcher

    return crawl(options, Fetcher(options.contact, options.delay, options.timeout, round(options.max_mb * 1e6)))


def dry_run(options: CrawlOptions) -> int:
    """Read the packaged page instead of the network; writes only into a folder that was named."""
    from embedrag.datagen.crawl.extract import extract

    page = files("embedrag.datagen.crawl") / "data" / "glossary_page.html"
    pairs = extract(page.read_text(encoding="utf-8"))[: options.limit_per_source]
    rows = [(term, text, "embedrag/datagen/crawl/data/glossary_page.html", now()) for term, text in pairs]
    say(tabulate([row[:2] for row in rows], ["term", "definition"], disable_numparse=True, maxcolwidths=[24, 80]))
    if options.output_dir:
        folder = Path(options.output_dir).expanduser()
        check_targets(_targets(folder), [], options.overwrite)
        write(folder, rows)
    say(f"{len(rows)} pairs of the packaged page; nothing was asked of the network")
    return 0


def crawl(options: CrawlOptions, fetcher: Fetcher, wiki: str | None = None) -> int:
    """Read all sources and write the outputs.

    Args:
        options: of the command.
        fetcher: reads pages.
        wiki: where Wikipedia is, `{language}` in it; tests have one of their own.

    Returns:
        0 when something was extracted, 1 otherwise.

    Raises:
        UserError: the folder holds something else, or a language is unknown.
    """
    from embedrag.datagen.crawl import wikipedia
    from embedrag.datagen.crawl.pages import Crawl

    wikipedia.check_languages(options.languages)
    folder = Path(options.output_dir or FOLDER).expanduser()
    check_targets(_targets(folder), [], options.overwrite or (folder / NAME).exists())
    if options.sources and not options.contact:
        say("note: Wikipedia asks programs to say whose they are: --contact with an address or URL of yours")
    settings = options.model_dump(include={"sources", "urls", "languages", "limit_per_source"})
    state = State(folder / NAME, settings, options.overwrite)
    try:
        _check_unchanged(folder, state)
        work = Crawl(options, fetcher, state, wiki or wikipedia.BASE)
        work.run()
        if work.rows:
            write(folder, work.rows)
            state.keep(WRITTEN, **{name: _digest(folder / name) for name in OUTPUTS})
    finally:
        state.close()
    say(tabulate(work.table, ["page", "pairs", "note"], disable_numparse=True, maxcolwidths=[None, None, 60]))
    pages = sum(row[1].isdecimal() for row in work.table)
    say(f"{len(work.rows):,} pairs of {pages:,} pages; {work.failed:,} failed")
    if work.rows:
        say(f"in {folder / 'glossary.csv'} and {folder / 'pairs.jsonl'}")
    if work.failed:
        say("the same command tries the failed pages again")
    return 0 if work.rows else 1


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


def _targets(folder: Path) -> dict[str, list[Path]]:
    return {"output_dir": [folder / name for name in OUTPUTS]}


def _check_unchanged(folder: Path, state: State) -> None:
    """Refuse to write over an output that somebody has edited since it was written."""
    written = state.done.get(WRITTEN, {})
    changed = [name for name in OUTPUTS if name in written and (folder / name).is_file()]
    changed = [name for name in changed if _digest(folder / name) != written[name]]
    if changed:
        raise UserError(
            f"--output_dir {folder}: {', '.join(changed)} changed since the crawl wrote it; move it to another place, "
            "or start anew with --overwrite"
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

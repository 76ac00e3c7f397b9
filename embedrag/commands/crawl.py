"""`embedrag crawl`: training rows from glossaries in the web."""

from __future__ import annotations

from embedrag.options.command import Command
from embedrag.options.field import Options, TextList, option
from embedrag.runtime.console import say


class CrawlOptions(Options):
    """Options of `embedrag crawl`."""

    sources: TextList = option([], "known lists of pages: wikipedia_glossary", group="crawl")
    urls: TextList = option([], "pages to read, or sitemaps of pages", group="crawl")
    output_dir: str | None = option(
        None,
        "folder for glossary.csv and pairs.jsonl; default: data; a dry run writes nothing by default",
        group="crawl",
        min_length=1,
    )
    limit_per_source: int = option(
        500, "pairs of one source, at most; a source is a list, or one of --urls", group="crawl", ge=1
    )
    languages: TextList = option(
        ["en", "ko", "zh", "de", "fr", "ja", "es"],
        "languages of the Wikipedias that are read in turn",
        group="crawl",
        min_length=1,
    )
    dry_run: bool = option(
        False, "read a page that comes with the package; the network is not used", group="crawl", aliases=("dry-run",)
    )
    contact: str | None = option(None, "your mail address or URL; every server receives it", group="crawl")
    delay: float = option(1.0, "seconds between two requests to the same host, 1 or more", group="crawl", ge=1)
    timeout: float = option(30.0, "seconds that one request may take, to its last byte", group="crawl", gt=0)
    max_mb: float = option(5.0, "size of the largest page that is read, unpacked, in MB", group="crawl", gt=0, le=1000)
    overwrite: bool = option(False, "delete the crawl in the folder and start from the beginning", group="crawl")


def run(options: CrawlOptions) -> int:
    """Crawl and print what each page gave; the exit code is 1 when there was nothing."""
    from tabulate import tabulate

    from embedrag.datagen.crawl.crawl import FOLDER, crawl, dry_run

    if options.dry_run:
        pairs = dry_run(options.output_dir, limit_per_source=options.limit_per_source, overwrite=options.overwrite)
        say(tabulate(pairs, ["term", "definition"], disable_numparse=True, maxcolwidths=[24, 80]))
        say(f"{len(pairs)} pairs of the packaged page; the network was not used")
        return 0
    result = crawl(options.output_dir or FOLDER, **options.model_dump(exclude={"output_dir", "dry_run"}))
    table = [(page.name, "-" if page.failed else page.pairs, page.note) for page in result.pages]
    say(tabulate(table, ["page", "pairs", "note"], disable_numparse=True, maxcolwidths=[None, None, 60]))
    read = sum(page.pairs is not None for page in result.pages)
    say(f"{result.pairs:,} pairs of {read:,} pages; {result.failed:,} failed")
    if result.pairs:
        say(f"in {result.output_dir / 'glossary.csv'} and {result.output_dir / 'pairs.jsonl'}")
    if result.failed:
        say("the same command tries the failed pages again")
    return 0 if result.pairs else 1


COMMAND = Command(CrawlOptions, run, "make training rows from glossaries in the web (extra crawl)")

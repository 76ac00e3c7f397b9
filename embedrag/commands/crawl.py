"""`embedrag crawl`."""

from __future__ import annotations

from pydantic import model_validator

from embedrag.options.command import Command
from embedrag.options.field import Options, TextList, option


class CrawlOptions(Options):
    """Options of `embedrag crawl`."""

    sources: TextList = option([], "known lists of pages: wikipedia_glossary", group="crawl")
    urls: TextList = option([], "pages to read, or sitemaps of pages", group="crawl")
    output_dir: str | None = option(
        None,
        "folder for glossary.csv and pairs.jsonl; left out: data, and a dry run writes nothing",
        group="crawl",
        min_length=1,
    )
    limit_per_source: int = option(
        500, "pairs taken from one source, at most: from the list, or from one of --urls", group="crawl", ge=1
    )
    languages: TextList = option(
        ["en", "ko", "zh", "de", "fr", "ja", "es"],
        "Wikipedias that are read, in turns",
        group="crawl",
        min_length=1,
    )
    dry_run: bool = option(
        False, "read a packaged page and ask nothing of the network", group="crawl", aliases=("dry-run",)
    )
    contact: str | None = option(
        None,
        "mail address or URL of yours, said to every server",
        group="crawl",
        min_length=3,
        max_length=200,
        pattern=r"^[!-'*-~]+( [!-'*-~]+)*$",
    )
    delay: float = option(1.0, "seconds from one request to the next of a host; 1 or more", group="crawl", ge=1)
    timeout: float = option(30.0, "seconds for one request, to its last byte", group="crawl", gt=0)
    max_mb: float = option(5.0, "longest page, unpacked, in MB", group="crawl", gt=0, le=1000)
    overwrite: bool = option(False, "forget what the folder holds, and start anew", group="crawl")

    @model_validator(mode="after")
    def _agree(self) -> CrawlOptions:
        problems = [
            f"--sources {name}: there is wikipedia_glossary" for name in self.sources if name != "wikipedia_glossary"
        ]
        if not (self.sources or self.urls or self.dry_run):
            problems.append("name --sources wikipedia_glossary, --urls, or --dry-run")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def run(options: CrawlOptions) -> int:
    """Do what the options say."""
    from embedrag.datagen.crawl.crawl import run

    return run(options)


COMMAND = Command(CrawlOptions, run, "make training rows from glossaries in the web (extra crawl)")

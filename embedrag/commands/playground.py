"""`embedrag playground`."""

from __future__ import annotations

from embedrag.options.command import Command
from embedrag.options.field import HALF, Device, Dtype, Options, option


class PlaygroundOptions(Options):
    """Options of `embedrag playground`."""

    model: str = option(..., "tuned model or adapter folder, or hub id", group="playground", min_length=1)
    baseline: str | None = option(
        None, "model to compare with; default: the base that the model's folder names", group="playground"
    )
    data: str = option(
        ...,
        "your documents: a file of any format that training reads (see --field), a text file with one document on each "
        "line, or a folder with a retrieval set",
        group="playground",
        min_length=1,
    )
    field: str = option("text", "key or column that holds the text", group="playground", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="playground")
    host: str = option(
        "127.0.0.1", "address of the page; with 0.0.0.0 other machines can see it too", group="playground"
    )
    port: int = option(8080, "port of the page; 0 takes any free one", group="playground", ge=0, le=65535)
    device: Device = option("auto", "where to compute", group="playground")
    dtype: Dtype = option("float32", HALF, group="playground")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="playground")


def run(options: PlaygroundOptions) -> int:
    """Show the page until Ctrl-C."""
    from embedrag.serving.playground import playground

    playground(**options.model_dump())
    return 0


COMMAND = Command(PlaygroundOptions, run, "compare two models on your documents in a browser")

"""The commands: `embedrag NAME …`. Parses, then imports what the command needs, then runs it.

Exit codes: 0 done, 1 the run went wrong, 2 the user can mend it, 70 another process ended, 75 stopped by a signal with
its state saved, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from embedrag import __version__, commands
from embedrag import serving_commands as serving
from embedrag.errors import LAUNCHED, LostContactError, UserError, is_out_of_memory, near_miss
from embedrag.options import field as fields
from embedrag.options.parsing import parse
from embedrag.training.config import options as config


@dataclass(frozen=True)
class Command:
    """A command: its options, the function that does it (imported only when it runs), and its one-line help."""

    options: type[fields.Options]
    function: str
    text: str
    config_file: bool = False


COMMANDS = {
    "train": Command(
        config.TrainOptions, "embedrag.training.run:train", "fine-tune an embedding model", config_file=True
    ),
    "merge": Command(commands.MergeOptions, "embedrag.merging.merge:run", "merge an adapter into its base, with proof"),
    "encode": Command(commands.EncodeOptions, "embedrag.encode:run", "write the vectors of a file of texts"),
    "evaluate": Command(commands.EvaluateOptions, "embedrag.evaluate:run", "score a model on a retrieval set"),
    "playground": Command(
        serving.PlaygroundOptions,
        "embedrag.serving.playground:run",
        "compare two models on your documents in a browser",
    ),
    "mteb": Command(
        commands.MtebOptions, "embedrag.evaluation.mteb_adapter:run", "score a model on tasks of MTEB (needs mteb)"
    ),
    "check": Command(
        commands.CheckOptions, "embedrag.data.checks.report:run", "find what is wrong with training data, and mend it"
    ),
    "mine": Command(commands.MineOptions, "embedrag.retrieval.mining:run", "find hard negatives for training rows"),
    "sweep": Command(
        commands.SweepOptions, "embedrag.training.sweep:run", "search for the best settings (needs optuna)"
    ),
    "export": Command(
        serving.ExportOptions, "embedrag.export.export:run", "write a model as ONNX, checked (extra onnx)"
    ),
    "serve": Command(
        serving.ServeOptions, "embedrag.serving.run:run", "answer OpenAI's embeddings requests (extra serve)"
    ),
    "docstrings": Command(
        commands.DocstringsOptions,
        "embedrag.datagen.docstrings:run",
        "make training rows from documentation of packages",
    ),
    "compose": Command(
        commands.ComposeOptions,
        "embedrag.datagen.glossary.compose:run",
        "make training rows with hard negatives from a glossary",
    ),
    "synth": Command(
        commands.SynthOptions,
        "embedrag.datagen.glossary.synth:run",
        "make training and test rows from terms and acronyms",
    ),
    "crawl": Command(
        commands.CrawlOptions,
        "embedrag.datagen.crawl.crawl:run",
        "make training rows from glossaries in the web (extra crawl)",
    ),
    "demo": Command(commands.DemoOptions, "embedrag.tools.demo:run", "score, train and score again on packaged data"),
}


def main(argv: Sequence[str] | None = None, script: bool = False) -> int:
    """Run one command and return its exit code.

    Args:
        argv: command name and its words; left out: those of the process.
        script: the command was called as `python NAME.py`, and `--help` should say so.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if sys.platform == "win32":
            raise UserError("EmbedRAG does not run on Windows itself; use it under WSL 2")
        if not words or words[0] in ("-h", "--help"):
            print(_overview())
            return 0
        if words[0] == "--version":
            print(__version__)
            return 0
        return run(words[0], words[1:], f"python {words[0]}.py" if script else f"embedrag {words[0]}")
    except UserError as error:
        if isinstance(error, LostContactError) and LAUNCHED in os.environ:
            return error.exit_code
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "on a GPU try --dtype bfloat16, --device cpu or a smaller model"
        print(f"error: memory ran out; {remedy}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run(name: str, words: Sequence[str], prog: str) -> int:
    """Parse the words of one command and run it; raises UserError for anything the user can mend."""
    if name not in COMMANDS:
        raise UserError(f"unknown command {name}{near_miss(name, COMMANDS)}; see embedrag --help")
    command = COMMANDS[name]
    options = parse(command.options, words, prog, command.text, command.config_file)
    if name != "train" and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is half written is then removed
    module, function = command.function.split(":")
    return int(getattr(importlib.import_module(module), function)(options) or 0)


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = ["usage: embedrag COMMAND …    (embedrag COMMAND --help for its options)", ""]
    return "\n".join(lines + [f"  {name:{width}}  {command.text}" for name, command in COMMANDS.items()])

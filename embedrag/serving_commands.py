"""The options of the commands that put a model to use: serve, export, playground."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from embedrag.options.field import HALF, Device, Dtype, Options, option


class ServeOptions(Options):
    """Options of `embedrag serve`."""

    model: str = option(..., "model or adapter folder, or hub id", group="serve", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="serve")
    backend: Literal["torch", "onnx", "onnx_int8"] = option(
        "torch", "what computes; onnx and onnx_int8 read the files that embedrag export wrote", group="serve"
    )
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: all of this machine's", group="serve", min_length=1)
    port: int = option(8000, "port to listen on; 0: any free one", group="serve", ge=0, le=65535)
    api_key: str | None = option(
        None, "key that clients must send; left out: $EMBEDRAG_API_KEY, which no process list shows", group="serve"
    )
    no_api_key: bool = option(False, "listen on other addresses than loopback without a key", group="serve")
    served_name: str | None = option(
        None, "name of the model in requests and answers; left out: the folder's name", group="serve", min_length=1
    )
    max_batch_tokens: int | None = option(
        None,
        "tokens that go through the model together; left out: 4,096 on a CPU, 32,768 on a GPU",
        group="serve",
        ge=1,
    )
    max_queue: int = option(
        4096, "texts that are waiting or at work; a request that would exceed it gets status 429", group="serve", ge=1
    )
    device: Device = option("auto", "where to compute", group="serve")
    dtype: Dtype = option(
        "float32", "precision of the computation (torch); auto: bfloat16 on GPUs that have it", group="serve"
    )
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="serve")

    @model_validator(mode="after")
    def _agree(self) -> ServeOptions:
        of_torch = {"--dtype": self.dtype != "float32", "--base_model_path": self.base_model_path is not None}
        wrong = [flag for flag, given in of_torch.items() if given and self.backend != "torch"]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: only with --backend torch; an ONNX file is complete in itself")
        return self


class ExportOptions(Options):
    """Options of `embedrag export`."""

    model: str = option(..., "merged or full model folder, or hub id", group="export", min_length=1)
    output: str = option(..., "folder for tokenizer, contract and onnx/model.onnx", group="export", min_length=1)
    int8: bool = option(False, "write onnx/model_int8.onnx too: weights of 8 bits", group="export")
    data: str | None = option(
        None,
        "score the model and its exports on it (nDCG@10): a folder in the BEIR layout, or a file of rows",
        group="export",
        min_length=1,
    )
    overwrite: bool = option(False, "replace the output folder, if it is an export", group="export")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="export")


class PlaygroundOptions(Options):
    """Options of `embedrag playground`."""

    model: str = option(..., "tuned model or adapter folder, or hub id", group="playground", min_length=1)
    baseline: str | None = option(
        None, "model to compare with; left out: the base that the model's folder names", group="playground"
    )
    data: str = option(
        ...,
        "your documents: JSONL, CSV, TSV (see --field), plain text, one a line, or a folder with corpus.jsonl",
        group="playground",
        min_length=1,
    )
    field: str = option("text", "key or column that holds the text", group="playground", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="playground")
    host: str = option("127.0.0.1", "address of the page; 0.0.0.0: other machines see it too", group="playground")
    port: int = option(8080, "its port; 0: a free one", group="playground", ge=0, le=65535)
    device: Device = option("auto", "where to compute", group="playground")
    dtype: Dtype = option("float32", HALF, group="playground")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="playground")

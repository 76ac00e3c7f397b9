"""`embedrag serve`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from embedrag.options.command import Command
from embedrag.options.field import Device, Dtype, Options, option


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


def run(options: ServeOptions) -> int:
    """Do what the options say."""
    from embedrag.serving.run import run

    return run(options)


COMMAND = Command(ServeOptions, run, "answer OpenAI's embeddings requests (extra serve)")

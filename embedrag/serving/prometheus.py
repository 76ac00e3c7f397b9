"""Figures of a running server, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Telemetry:
    """Counters and histograms. Any thread may change them.

    Attributes:
        requests: answers, by route and status (499: the client had gone).
        seconds: from the first byte of a request to the last byte of its answer, only for /v1/embeddings.
        texts: texts that were answered.
        tokens: tokens of those texts.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        """Start at zero.

        Args:
            waiting: number of texts that were accepted and are not answered yet.
        """
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("embedrag_requests", "Answers.", ["route", "status"], registry=registry)
        self.seconds = Histogram("embedrag_request_seconds", "Time of a request.", buckets=SECONDS, registry=registry)
        self.texts = Counter("embedrag_texts", "Texts answered.", registry=registry)
        self.tokens = Counter("embedrag_tokens", "Tokens of those texts.", registry=registry)
        queue = Gauge("embedrag_queue_texts", "Texts taken and not answered yet.", registry=registry)
        queue.set_function(waiting)
        self._batch_texts = Histogram("embedrag_batch_texts", "Texts of a batch.", buckets=TEXTS, registry=registry)
        self._batch_tokens = Histogram("embedrag_batch_tokens", "Tokens of a batch.", buckets=TOKENS, registry=registry)
        self._batch_seconds = Histogram(
            "embedrag_batch_seconds", "Time of the model for a batch.", buckets=SECONDS, registry=registry
        )
        ProcessCollector(registry=registry)

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Count a batch that went through the model."""
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(tokens)
        self._batch_seconds.observe(seconds)

    def page(self) -> bytes:
        """All figures, as /metrics sends them."""
        return generate_latest(self._registry)

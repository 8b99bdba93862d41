"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from mrflow.memory import peak_memory

if TYPE_CHECKING:
    from mrflow.server.tickets import Kind, Ticket

_SECONDS = tuple(round(one * 10.0**k, 3) for k in range(-2, 3) for one in (1, 1.5, 2, 3, 5, 7))  # .01 to 700
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The numbers of one server, in a registry of their own.

    gather: gives those of all replicas, name to text, where the server is one of several.
    """

    gather: Callable[[], Mapping[str, str]] | None = None

    def __init__(self, devices: Sequence[torch.device]) -> None:
        """Begin at zero."""
        self._registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self._registry), partial(Gauge, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        labels = ["route", "status"]
        self._requests = counter("mrflow_requests", "Requests by route and outcome.", labels)
        self._whole = histogram("mrflow_request_seconds", "To the answer's last byte.", labels, buckets=_SECONDS)
        self.waiting = gauge("mrflow_queue_length", "Pictures that wait.")
        self.hung = gauge("mrflow_hung_workers", "Workers without a sign of life.")
        wait = "Time from joining the queue to being taken from it, before each of draft and finish."
        self.wait = histogram("mrflow_queue_wait_seconds", wait, buckets=_SECONDS)
        stage = "Time of a stage of one batch."
        self._stages = histogram("mrflow_stage_seconds", stage, ["stage"], buckets=_SECONDS)
        self._batches = histogram("mrflow_batch_size", "Pictures in one batch.", ["kind"], buckets=_SIZES)
        self._images = counter("mrflow_images", "Pictures made.", ["kind"])
        self._pixels = counter("mrflow_pixels", "Pixels of the pictures made.", ["kind"])
        memory = "Highest memory so far: of a CUDA device what torch allocated, of the CPU the whole process's."
        peak = gauge("mrflow_peak_memory_bytes", memory, ["device"])
        for device in devices:
            peak.labels(str(device)).set_function(lambda device=device: peak_memory(device) or 0)  # type: ignore[misc]

    def request_done(self, route: str, status: str, seconds: float) -> None:
        """Note a request that is over."""
        self._requests.labels(route, status).inc()
        self._whole.labels(route, status).observe(seconds)

    def batch_done(self, kind: Kind, tickets: Sequence[Ticket], seconds: Mapping[str, float]) -> None:
        """Note a batch that went well."""
        for stage, value in seconds.items():
            self._stages.labels(stage).observe(value)
        self._batches.labels(kind).observe(len(tickets))
        self._images.labels(kind).inc(len(tickets))
        for ticket in tickets:
            width, height = ticket.job.size
            share = 1.0 if kind != "draft" else float(ticket.job.plan.ratio) ** -2
            self._pixels.labels(kind).inc(width * height * share)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format; may wait for other replicas."""
        return self.own() if self.gather is None else generate_latest(_Merged(self.gather()))

    def own(self) -> bytes:
        """Return this server's part of it."""
        return generate_latest(self._registry)


class _Merged:
    """The numbers of several servers, each with its name as the label "replica"; a registry to be read once."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once, with all servers' samples, and how many servers there are."""
        merged: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for one in text_string_to_metric_families(text):
                metric = merged.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                for sample in one.samples:
                    metric.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
        count = Metric("mrflow_replicas", "Replicas whose numbers these are.", "gauge")
        count.add_sample(count.name, {}, len(self._texts))
        yield from (*merged.values(), count)

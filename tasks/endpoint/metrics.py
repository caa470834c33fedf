"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tasks.endpoint.streams import Streams

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, streams: Streams) -> None:
        """Declare them; the gauges read `streams` when they are asked."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "keiryo_requests",
            "Requests by route and HTTP status; 499: the client hung up; a status after the first streamed byte counts too",
            ["route", "status"],
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "keiryo_prompt_tokens", "Tokens of the prompts that were submitted", registry=self._registry
        )
        self.generated_tokens = Counter(
            "keiryo_generated_tokens", "Tokens that the engine made", registry=self._registry
        )
        self.ttft_s = Histogram(
            "keiryo_time_to_first_token_seconds",
            "From the submission to the first token, the wait for a slot included",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.itl_s = Histogram(
            "keiryo_inter_token_seconds",
            "Between two tokens of a request",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.request_s = Histogram(
            "keiryo_request_seconds",
            "From the request to its last token",
            buckets=_SECONDS,
            registry=self._registry,
        )
        running = Gauge("keiryo_requests_running", "Requests that have a token", registry=self._registry)
        running.set_function(lambda: streams.running)
        waiting = Gauge(
            "keiryo_requests_waiting", "Requests that have no token yet: the queue", registry=self._registry
        )
        waiting.set_function(lambda: streams.waiting)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

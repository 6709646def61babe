"""The whole house, started for real: one request as a trace, as metrics and as a log line."""

from __future__ import annotations

from tests.support.otlp import OtlpSink
from tests.support.processes import pair

MESSAGE = {"model": "claude-opus-5-5", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}


def test_one_streamed_request_is_one_trace_one_set_of_metrics_and_one_log_line() -> None:
    with OtlpSink() as sink, pair(OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, OTEL_BSP_SCHEDULE_DELAY="100") as (gateway, _):
        with gateway.client() as client:
            answer = client.post(
                "/v1/messages", json=MESSAGE | {"stream": True}, headers={"anthropic-version": "2023-06-01"}
            )
        assert answer.status_code == 200
        assert answer.content.rstrip().endswith(b'{"type":"message_stop"}')
        (line,) = gateway.wait_requests(1)
        assert line["outcome"] == "ok"
        assert line["trace_id"] == answer.headers["x-trace-id"]
        spans = {s.name: s for s in sink.trace(line["trace_id"], 3)}
        server, chat, attempt = spans["POST /v1/messages"], spans["chat claude-opus-5-5"], spans["POST"]
        assert (server.kind, chat.kind, attempt.kind) == ("SERVER", "CLIENT", "CLIENT")
        assert (chat.parent_id, attempt.parent_id) == (server.span_id, chat.span_id)
        labels = {
            "http_route": "/v1/messages",
            "gen_ai_provider_name": "anthropic",
            "gen_ai_request_model": "claude-opus-5-5",
            "outcome": "ok",
        }
        assert gateway.sample("claude_proxy_requests_total", **labels) == 1
        assert gateway.stop() == 0

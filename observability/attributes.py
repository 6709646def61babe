"""The catalogue's span attributes, span names and log events. Part of `observability.catalog`, which is where to import them from."""

from __future__ import annotations

from enum import StrEnum


class LogEvent(StrEnum):
    """Values of `event` in our JSON lines."""

    REQUEST = "request"
    CALL = "call"
    LOG = "log"
    LOOP_BLOCKED = "loop_blocked"


class Attr:
    """Span attribute keys of this project's own telling and of the GenAI conventions."""

    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    REQUEST_MODEL = "gen_ai.request.model"
    REQUEST_STREAM = "gen_ai.request.stream"
    REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
    RESPONSE_ID = "gen_ai.response.id"
    RESPONSE_MODEL = "gen_ai.response.model"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
    CACHE_WRITE_TOKENS = "gen_ai.usage.cache_write.input_tokens"
    REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
    SYSTEM_INSTRUCTIONS = "gen_ai.system_instructions"
    INPUT_MESSAGES = "gen_ai.input.messages"
    OUTPUT_MESSAGES = "gen_ai.output.messages"
    CONTENT_CUT = "claude_proxy.content.cut"
    ERROR_TYPE = "error.type"
    RESEND_COUNT = "http.request.resend_count"
    SERVER_ADDRESS = "server.address"
    SERVER_PORT = "server.port"
    ANTHROPIC_REQUEST_ID = "anthropic.request.id"
    UPSTREAM_REQUEST_ID = "claude_proxy.upstream_request_id"
    REQUEST_ID = "claude_proxy.request_id"
    OUTCOME = "claude_proxy.outcome"
    CLIENT = "claude_proxy.client"
    SPAN_ENDS_AT = "claude_proxy.span_ends_at"
    RETRY_AFTER = "claude_proxy.retry_after"
    LIMIT = "claude_proxy.limit"
    LIMITED_BY = "claude_proxy.queue.dimension"
    PREDICTED_WAIT = "claude_proxy.queue.predicted_seconds"
    RETRY_REASON = "claude_proxy.retry.reason"
    BACKOFF_SECONDS = "claude_proxy.retry.backoff_seconds"
    BACKOFF_ASKED_BY = "claude_proxy.retry.asked_by"
    FALLBACK_FROM = "claude_proxy.fallback.from"
    CACHE = "claude_proxy.cache"
    COST = "claude_proxy.cost_usd"
    CERTAINTY = "claude_proxy.cost_certainty"
    TASK = "claude_proxy.task"
    CLAUDE_CODE_SESSION = "claude_code.session_id"
    CLAUDE_CODE_AGENT = "claude_code.agent_id"


class Http:
    """Stable HTTP conventions: attribute keys of the SERVER span and of each attempt's CLIENT span."""

    METHOD = "http.request.method"
    STATUS = "http.response.status_code"
    ROUTE = "http.route"
    URL_FULL = "url.full"
    URL_PATH = "url.path"
    URL_QUERY = "url.query"
    URL_SCHEME = "url.scheme"
    USER_AGENT = "user_agent.original"
    CLIENT_ADDRESS = "client.address"
    CLIENT_PORT = "client.port"
    PEER_ADDRESS = "network.peer.address"
    PEER_PORT = "network.peer.port"
    PROTOCOL_VERSION = "network.protocol.version"
    EXCEPTION_TYPE = "exception.type"
    EXCEPTION_ESCAPED = "exception.escaped"


EXCEPTION_EVENT = "exception"
"""Span event on the attempt span that failed: the exception's type. Its words and its traceback are never told."""

FIRST_CHUNK_EVENT = "first_chunk"
"""Span event on the `chat` span at the first content_block_delta."""

QUEUE_SPAN = "wait for capacity"
"""INTERNAL span: the request waits so that the provider's limit (or the client's) is not overrun."""
BACKOFF_SPAN = "backoff"
"""INTERNAL span: the pause between two attempts."""

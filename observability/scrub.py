"""What must not leave: keys wherever they stand, what addresses carry, and what exceptions quote.

Headers and bodies are never recorded at all. What remains are the few texts of a client that telemetry does show (path,
query, user agent, model) and the words of exceptions, which may quote anything. Spans are cleaned by the thread that
exports them, log lines by the thread that writes them, so that a request pays nothing for it.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, Status
from opentelemetry.util.types import AttributeValue

from observability.attributes import Http

GONE = "REDACTED"
"""Stands where something was taken out, as in OpenTelemetry's own redaction."""

_KEY = r"(?<![A-Za-z0-9])(?:sk-|cpk-|AIza)[A-Za-z0-9_\-]{6,}"
_KEY_TEXT, _KEY_BYTES = re.compile(_KEY), re.compile(_KEY.encode())
"""What Anthropic's, OpenAI's and Google's keys and our own client keys look like."""
_MARKS = ("sk-", "pk-", "AIza")
_MARKS_BYTES = tuple(mark.encode() for mark in _MARKS)
"""What a key cannot be without: looking for these first is many times faster than the pattern, and mostly the end of it."""
_ID = re.compile(r"(?:msgbatch_|file_|claude-)[A-Za-z0-9_.\-]{1,80}")
"""Path parts that name something and are worth having in a trace."""
_PARAMETER = re.compile(r"[a-z_]{1,32}")
_QUOTING = frozenset(("exception.message", "exception.stacktrace"))
_INTEGERS = range(-(2**63), 2**63)
"""What OTLP can carry; a larger one would fail the whole batch of spans."""
_DEPTH = 8
"""Exceptions of one chain that are told."""


class Scrubber:
    """Cleans spans. `routes` are the rules served: their fixed parts stay readable in addresses."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._words = frozenset(part for route in routes for part in route.split("/") if not part.startswith("<"))
        self._addresses = {Http.URL_PATH: self._path, Http.URL_QUERY: _query, Http.URL_FULL: self._url}

    def clean(self, span: ReadableSpan) -> ReadableSpan:
        """The span itself when it has nothing to hide, else a clean copy of it."""
        attributes = dict(span.attributes or {})
        changed = {key: new for key, value in attributes.items() if (new := self._value(key, value)) is not value}
        context, status = span.context, span.status
        name, state = _text(span.name), context.trace_state
        if not (changed or span.events or status.description or state or name is not span.name):
            return span
        if state and _KEY_TEXT.search(state.to_header()):
            context = SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags)
        return ReadableSpan(
            name=name,
            context=context,
            parent=span.parent,
            resource=span.resource,
            attributes={k: v for k, v in (attributes | changed).items() if v is not None},
            events=[self._event(event) for event in span.events],
            links=span.links,
            kind=span.kind,
            status=Status(status.status_code),  # its description would be the exception's words
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _event(self, event: Event) -> Event:
        kept = {k: self._value(k, v) for k, v in (event.attributes or {}).items() if k not in _QUOTING}
        return Event(event.name, {k: v for k, v in kept.items() if v is not None}, event.timestamp)

    def _value(self, key: str, value: AttributeValue) -> AttributeValue | None:
        """None for what cannot be carried at all."""
        if isinstance(value, str):
            clean = self._addresses.get(key, _text)(value)
            return value if clean == value else clean
        if isinstance(value, int) and value not in _INTEGERS:
            return None
        return value

    def _path(self, path: str) -> str:
        return "/".join(part if part in self._words or _is_id(part) else GONE for part in path.split("/"))

    def _url(self, url: str) -> str:
        address, _, query = url.partition("?")
        scheme, _, rest = address.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host}{self._path(slash + path)}" + (f"?{_query(query)}" if query else "")


def _is_id(part: str) -> bool:
    return _ID.fullmatch(part) is not None and _KEY_TEXT.search(part) is None


def _query(query: str) -> str:
    """The parameters' names; any value may be a key."""
    names = (parameter.partition("=") for parameter in query.split("&"))
    return "&".join(f"{name}={GONE}" if mark and _PARAMETER.fullmatch(name) else GONE for name, mark, _ in names)


def _text(text: str) -> str:
    return _KEY_TEXT.sub(GONE, text) if any(mark in text for mark in _MARKS) else text


_BEARER = re.compile(r"(?i)(?<=\bbearer )(?=\S{0,64}[0-9_])[A-Za-z0-9._~+/=\-]{8,}")
"""A token that is named as one, whatever it looks like."""


def without_keys(secrets: Iterable[str]) -> Callable[[str], str]:
    """Cleans what was said in a call: it loses all that looks like a key, and the `secrets` themselves, unless they are
    so short that they are words."""
    own = sorted((secret for secret in secrets if len(secret) >= 8), key=len, reverse=True)

    def clean(text: str) -> str:
        for secret in own:
            text = text.replace(secret, GONE)
        return _text(_BEARER.sub(GONE, text) if "earer " in text.lower() else text)

    return clean


def clean_line(data: bytes) -> bytes:
    """Log lines without keys."""
    return _KEY_BYTES.sub(GONE.encode(), data) if any(mark in data for mark in _MARKS_BYTES) else data


def told(error: BaseException) -> str:
    """An exception as its traceback tells it, without its words: only types, an OSError's number, and places in the code."""
    parts: list[str] = []
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen and len(seen) < _DEPTH:
        seen.add(id(following))
        frames = "".join(traceback.format_tb(following.__traceback__, -50))
        parts.append(f"Traceback (most recent call last):\n{frames}{named(following)}")
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return "\n\nafter\n\n".join(parts)


def named(error: BaseException) -> str:
    """`service.errors.NotSent`, `ConnectionRefusedError [ECONNREFUSED]`, `ExceptionGroup [KeyError, ValueError]`."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name} [{errno.errorcode.get(error.errno, error.errno)}]"
    if isinstance(error, BaseExceptionGroup):
        return f"{name} [{', '.join(map(named, error.exceptions[:_DEPTH]))}]"
    return name


def wordless(arguments: Any) -> Any:
    """A log call's arguments with exceptions replaced by their names."""
    if isinstance(arguments, tuple):
        return tuple(named(a) if isinstance(a, BaseException) else a for a in arguments)
    return arguments

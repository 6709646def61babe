"""Secrets that are known, so that they can be looked for: keys and prompts, in every form they might be written in."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

from tests.support import claude
from tests.support.upstream import Script, answer, reset

PROVIDER_KEY = "sk-ant-api03-CANARYprovider+0"
CLIENT_KEY = "cpk-CANARYclient-1"
WRONG_KEY = "sk-ant-api03-CANARYwrong-2"
METRICS_TOKEN = "CANARYmetricsTOKEN3"
PROMPT = "CANARYprompt: grüße, <4>"
SYSTEM = "CANARYsystem 5"
TOOL = "CANARYtool 6"
FILE = "CANARYfile 7"
ANSWER = "CANARYanswer 8"
QUERY_KEY = "AIzaCANARYquery_9"
PATH_KEY = "sk-ant-CANARYpath-a"
BARE = "CANARYbareb"
"""Looks like no key at all; stands wherever something free can be written."""

HEADERS = {
    "authorization": f"Bearer {WRONG_KEY}",
    "x-goog-api-key": QUERY_KEY,
    "proxy-authorization": "Basic " + base64.b64encode(f"user:{WRONG_KEY}".encode()).decode(),
    "cookie": f"session={BARE}; key={WRONG_KEY}",
    "x-odd-secret": BARE,
    "api-key": WRONG_KEY,
    "anthropic-beta": BARE,
    "baggage": f"key={BARE}",
    "tracestate": f"vendor={WRONG_KEY}",
    "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
    "referer": f"http://127.0.0.1/?key={QUERY_KEY}",
    "x-forwarded-for": BARE,
    "user-agent": f"agent/1 ({PATH_KEY})",
    "x-claude-code-session-id": WRONG_KEY,
    "x-stainless-helper": PATH_KEY,
    "idempotency-key": BARE,
}
"""Every header that may carry a key, and some that should not; the client key itself goes beside them."""
QUERY = f"?key={QUERY_KEY}&beta={BARE}&{PATH_KEY}&{BARE}=1&token={quote(PROMPT)}"

ASKED = claude.ASKED | {
    "system": SYSTEM,
    "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}, {"type": "text", "text": FILE}]}],
    "tools": [{"name": "t", "description": TOOL, "input_schema": {"type": "object"}}],
    "metadata": {"user_id": BARE},
}
EVERY = (
    PROVIDER_KEY, CLIENT_KEY, WRONG_KEY, METRICS_TOKEN, PROMPT, SYSTEM, TOOL, FILE, ANSWER, QUERY_KEY, PATH_KEY, BARE,
)  # fmt: skip
KEYS = (PROVIDER_KEY, CLIENT_KEY, WRONG_KEY, METRICS_TOKEN, QUERY_KEY, PATH_KEY)
"""Those of them that never leave, not even with content capture."""
SPOKEN = ASKED | {"messages": [{"role": "user", "content": f"{PROMPT}\n" + "\n".join(KEYS) + f"\nBearer {BARE}42"}]}
"""A prompt with every key in it."""
QUOTED = " ".join((ANSWER, PROMPT, SYSTEM, TOOL, FILE, PROVIDER_KEY, CLIENT_KEY, BARE))
"""What an upstream answers that repeats everything it was told."""


def forms(secret: str) -> set[bytes]:
    """The secret as it is, escaped, and encoded: base64 at each of its three alignments, hex, URL."""
    raw = secret.encode()
    found = {raw, raw.lower(), quote(secret, safe="").encode(), quote(secret).encode(), raw.hex().encode()}
    found |= {json.dumps(secret)[1:-1].encode(), secret.encode("unicode_escape"), repr(raw)[2:-1].encode()}
    for offset in range(3):
        inner = base64.b64encode(b"\0" * offset + raw)
        # Only the characters that its neighbours cannot change.
        inner = inner[(0, 2, 3)[offset] : len(inner.rstrip(b"=")) - 2]
        found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


FORMS = {form: secret for secret in EVERY for form in forms(secret)}
KEY_FORMS = {form: secret for form, secret in FORMS.items() if secret in KEYS}
HALVES = tuple(key[key.index("CANARY") :][:10].encode() for key in KEYS)
"""What half a key would show."""


@dataclass
class Search:
    """Looks for every form of every secret; `looked` counts the pieces by kind, `found` names what was where."""

    looked: dict[str, int] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def through(self, kind: str, pieces: Iterable[bytes], *, keys_only: bool = False) -> None:
        """Search these pieces; anything that says CANARY at all is found too. `keys_only`: where prompts may stand."""
        looked_for, marks = (KEY_FORMS, HALVES) if keys_only else (FORMS, (b"CANARY",))
        for piece in pieces:
            self.looked[kind] = self.looked.get(kind, 0) + 1
            hits = {secret for form, secret in looked_for.items() if form in piece}
            if hits or any(mark in piece for mark in marks):
                self.found.append(f"{kind}: {sorted(hits)} in {piece[:600]!r}")


def _error(status: str, kind: str) -> Script:
    body = claude.error(kind, QUOTED, quoted=QUOTED)
    return lambda c, seen: c.sendall(answer(status, body, "content-type: application/json", "retry-after: 1"))


def _bytes(data: bytes, *, then: Callable[..., None] | None = None) -> Script:
    """These bytes, then the end of the connection."""

    def script(connection, seen) -> None:  # type: ignore[no-untyped-def]
        connection.sendall(data)
        if then is not None:
            then(connection)
        else:
            connection.close()

    return script


_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_Q = QUOTED.encode()
_MESSAGE = json.dumps(json.loads(claude.MESSAGE) | {"content": [{"type": "text", "text": QUOTED}]}).encode()
_STREAM = claude.start() + claude.BLOCK + claude.delta(QUOTED)
_ERROR_EVENT = claude.event("error", error={"type": "overloaded_error", "message": QUOTED})
_SSE = claude.SSE_HEAD_UNTIL_CLOSE

PLAYS: dict[str, Script] = {
    "ok": lambda c, seen: c.sendall(answer("200 OK", _MESSAGE, "content-type: application/json", f"x-q: {BARE}")),
    "stream": _bytes(_SSE + _STREAM + claude.last()),
    "invalid": _error("400 Bad Request", "invalid_request_error"),
    "unauthorized": _error("401 Unauthorized", "authentication_error"),
    "forbidden": _error("403 Forbidden", "permission_error"),
    "limited": _error("429 Too Many Requests", "rate_limit_error"),
    "broken": _error("500 Internal Server Error", "api_error"),
    "overloaded": _error("529 Overloaded", "overloaded_error"),
    "html": lambda c, seen: c.sendall(answer("502 Bad Gateway", b"<html>" + _Q, "content-type: text/html")),
    "error_first": _bytes(_SSE + _ERROR_EVENT),
    "error_after": _bytes(_SSE + _STREAM + _ERROR_EVENT),
    "cut": _bytes(_SSE + _STREAM),
    "cut_in_event": _bytes(_SSE + _STREAM[:-20]),
    "reset_mid": _bytes(_SSE + _STREAM, then=reset),
    "malformed_event": _bytes(_SSE + claude.start() + b"event: content_block_delta\ndata: {" + _Q + b"\n\n" + claude.last()),
    "json_cut": _bytes(_JSON + b"content-length: 9999\r\n\r\n" + _MESSAGE),
    "json_garbage": _bytes(_JSON + b"\r\n" + _Q),
    "reset": _bytes(b"", then=reset),
    "closed": _bytes(b""),
    "no_http": _bytes(_Q + b"\r\n\r\n"),
    "bad_status": _bytes(b"HTTP/1.1 " + BARE.encode() + b" " + _Q + b"\r\n\r\n"),
    "bad_header": _bytes(b"HTTP/1.1 200 OK\r\n" + _Q + b"\r\nx\x01y: " + BARE.encode() + b"\r\n\r\n"),
    "bad_length": _bytes(_JSON + b"content-length: " + BARE.encode() + b"\r\n\r\n" + _MESSAGE),
    "bad_chunk": _bytes(claude.SSE_HEAD + BARE.encode() + b"\r\n" + _STREAM),
    "bad_gzip": _bytes(_JSON + b"content-encoding: gzip\r\n\r\n" + _MESSAGE),
}  # fmt: skip
"""What the upstream does: every way to answer and to fail, each repeating what it was told wherever it has words."""

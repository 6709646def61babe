"""Which provider serves which path: every API under its own prefix, Claude's bare as well."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

from flask import current_app, request

from service.errors import BadRequest
from service.upstream.provider import Provider, Route
from service.upstream.providers import PROVIDERS

KEY = "claude_proxy.providers"
"""Where the application keeps its providers."""

_PLAIN = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]+")
"""A path segment, decoded: no separator, no step up, no control character."""


def served(providers: Sequence[Provider]) -> Iterator[tuple[str, Provider, Route]]:
    """Every native rule with its prefix."""
    for provider in providers:
        for route in provider.routes:
            for prefix in ("", provider.prefix) if provider.bare else (provider.prefix,):
                yield prefix + route.rule, provider, route


RULES = frozenset(rule for rule, _, _ in served(PROVIDERS))
"""Every rule served here: values of the `http_route` label."""


def speaker() -> Provider:
    """In whose shape the request being served is answered: its path's provider, on routes of our own the first one."""
    providers: Sequence[Provider] = current_app.extensions.get(KEY, PROVIDERS)
    path = request.path
    return next((each for each in providers if path.startswith(each.prefix + "/")), providers[0])


def prefix_of(target: str, provider: Provider) -> str:
    """The provider's prefix, if the target begins with it."""
    return provider.prefix if target.startswith(provider.prefix + "/") else ""


def upstream_target(target: str, provider: Provider) -> str:
    """Path and query as they go up: as written, less our prefix. Raises `BadRequest` for a path that is not plainly one of
    the API's: routes match what is decoded, and only what is written may decide where our credential goes."""
    path, mark, query = target.removeprefix(prefix_of(target, provider)).partition("?")
    first, *segments = path.split("/")[1:] if path.startswith("/") else [""]
    plain = all(_PLAIN.fullmatch(unquote(s)) for s in (segments[:-1] if segments and not segments[-1] else segments))
    versions = {route.rule.split("/")[1] for route in provider.routes}
    if first not in versions or not segments or not plain or "#" in target:
        raise BadRequest("the path is not one of the API's, plainly written", field="path")
    return path + mark + query

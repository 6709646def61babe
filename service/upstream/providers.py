"""Every provider that the gateway speaks to. Another one is a module beside this and a row here."""

from __future__ import annotations

from collections.abc import Sequence

from service.upstream.anthropic import Anthropic
from service.upstream.gemini import Gemini
from service.upstream.openai import OpenAI
from service.upstream.provider import Provider

PROVIDERS: tuple[Provider, ...] = (Anthropic(), Gemini(), OpenAI())
"""The first one is Claude: routes of our own answer errors in its shape."""


def models_of(providers: Sequence[Provider]) -> frozenset[str]:
    """Every model that gets a metric label of its own."""
    return frozenset().union(*(provider.models for provider in providers))

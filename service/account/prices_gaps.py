"""What the public price list (genai-prices 0.2.3) lacks, each with its source. [docs]: the pricing page of Claude's
documentation, 2026-09-26; [llm]: litellm 1.109.1's price file; [list]: the list's own comments."""

from __future__ import annotations

import re
from datetime import date
from fractions import Fraction

from service.account.prices_list import Listed, Rate, picos, utc

SAME_AS = {
    ("anthropic", "claude-mythos-5"): "claude-fable-5",
    ("anthropic", "claude-mythos-5-1"): "claude-fable-5-1",
}
"""Limited-availability models at the price of their public twins. [docs] [llm]"""

EARLIER: dict[tuple[str, str], tuple[float, dict[str, Rate]]] = {
    ("anthropic", "claude-sonnet-5-5"): (utc(date(2026, 10, 7)), {"cache_read": ((-1, picos("0.20", 10**6)),)}),
}
"""Rates that held before a day, where the list has only the later ones. [docs]"""

UNLISTED = {
    ("anthropic", "batch"): Fraction(1, 2),
    ("anthropic", "fast"): Fraction(2),
    ("openai", "batch"): Fraction(1, 2),
    ("openai", "flex"): Fraction(1, 2),
    ("openai", "priority"): Fraction(2),
    ("openai", "fast"): Fraction(2),
    ("gcp.gemini", "batch"): Fraction(1, 2),
    ("gcp.gemini", "flex"): Fraction(1, 2),
    ("gcp.gemini", "priority"): Fraction(9, 5),
}
"""The providers' general rules, for a model (or a day) whose variant the list does not have. [docs] [list]"""

WITHOUT_DOUBT = frozenset({("anthropic", "batch")})
"""General rules without an exception: a batch costs half, its cache writes and reads too. [docs]"""

WEB_SEARCH = {"anthropic": picos(10, 1000)}
"""Pico-dollars per search, whatever the model. [docs]"""

NEVER_AS_TEXT = frozenset({"input_audio", "cache_read_audio", "output_audio", "output_image", "output_video"})
"""Kinds of tokens that cost other than text wherever a price page has them: where the list has no rate for one, the
model's text rate is an estimate. Images and videos that go in cost as text does, unless the list says otherwise. [list]"""

US_ONLY = Fraction(11, 10)
"""`inference_geo: us` costs this much more on every kind of token, from Claude 4.6 on; older models refuse it. [docs]"""

_VERSION = re.compile(r"-(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")
_DATE = re.compile(r"[-@](?:20\d{6}|20\d\d-\d\d-\d\d)$")


def takes_geo(name: str) -> bool:
    """Whether a Claude model is 4.6 or newer."""
    version = _VERSION.search(name)
    return version is not None and (int(version[1]), int(version[2] or 0)) >= (4, 6)


def plain(name: str) -> str:
    """A model's name as price lists have it: in lower case, without Claude Code's `[1m]` and Gemini's `models/`."""
    return name.lower().removesuffix("[1m]").removeprefix("models/")


def undated(name: str) -> str:
    """Without the day of its release at the end."""
    return _DATE.sub("", name)


def with_earlier(provider: str, model: Listed) -> Listed:
    """The model with what it cost before the list's only period; as it is when there is nothing to add."""
    day, rates = EARLIER.get((provider, model.id), (0.0, None))
    if rates is None or len(model.periods) > 1:
        return model
    ((_, now),) = model.periods
    return Listed(model.id, model.match, ((0.0, {**now, **rates}), (day, now)), model.specials)

"""What Claude's tokens cost here, for the cost report: list prices of November 2026, without the dates of their changes."""

from decimal import Decimal

from service.simulator.truth import Billed, Place

_PRICES = {  # US dollars per million tokens: input, output, cache read
    "claude-fable-5-2": ("8", "40", "0.20"),
    "claude-mythos-5-2": ("8", "40", "0.20"),
    "claude-fable-5-1": ("10", "50", "0.25"),
    "claude-mythos-5-1": ("10", "50", "0.25"),
    "claude-fable-5": ("10", "50", "1"),
    "claude-mythos-5": ("10", "50", "1"),
    "claude-opus-5-5": ("4", "20", "0.20"),
    "claude-opus-5": ("5", "25", "0.50"),
    "claude-opus-4-8": ("5", "25", "0.50"),
    "claude-opus-4-7": ("5", "25", "0.50"),
    "claude-opus-4-6": ("5", "25", "0.50"),
    "claude-opus-4-5-20251101": ("5", "25", "0.50"),
    "claude-sonnet-5-5": ("2", "10", "0.10"),
    "claude-sonnet-5": ("2", "10", "0.20"),
    "claude-sonnet-4-6": ("3", "15", "0.30"),
    "claude-sonnet-4-5-20250929": ("3", "15", "0.30"),
    "claude-haiku-5-5": ("0.10", "0.50", "0.01"),
    "claude-haiku-4-5-20251001": ("1", "5", "0.10"),
}
_CENTS = Decimal(100) / 1_000_000
_WRITE_5M, _WRITE_1H, _BATCH, _FAST, _US = Decimal("1.25"), Decimal(2), Decimal("0.5"), Decimal(2), Decimal("1.1")
_HAIKU_LONG = Decimal(5)  # Haiku 5.5 above 100,000 tokens of prompt, the whole request


def cents(place: Place, billed: Billed) -> dict[str, Decimal]:
    """What the tokens cost in cents, by type of token as the cost report calls it."""
    entry, out, read = (Decimal(price) for price in _PRICES[place.model])
    factor = _CENTS
    if place.tier == "batch":
        factor *= _BATCH
    elif place.speed == "fast":
        factor *= _FAST
    if place.geo == "us":
        factor *= _US
    if place.model == "claude-haiku-5-5" and place.band:
        factor *= _HAIKU_LONG
    written_1h = billed.cache_creation_1h_input_tokens
    return {
        "uncached_input_tokens": billed.input_tokens * entry * factor,
        "output_tokens": billed.output_tokens * out * factor,
        "cache_read_input_tokens": billed.cache_read_input_tokens * read * factor,
        "cache_creation.ephemeral_5m_input_tokens": (billed.cache_creation_input_tokens - written_1h)
        * entry
        * _WRITE_5M
        * factor,
        "cache_creation.ephemeral_1h_input_tokens": written_1h * entry * _WRITE_1H * factor,
    }

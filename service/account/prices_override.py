"""The owner's own prices: a JSON file of `{"provider/model": {"input": dollars per million tokens, ...}}`."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import msgspec

from service.account.prices_gaps import plain
from service.account.prices_list import PROVIDERS, Listed, Rates, Special, picos

_Dollars = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """Dollars per million tokens (`web_search`: per thousand searches). A cache rate that is left out is that of input
    (of `cache_write`, for `cache_write_1h`); `batch_factor` left out is the provider's general rule."""

    input: _Dollars
    output: _Dollars
    cache_read: _Dollars | None = None
    cache_write: _Dollars | None = None
    cache_write_1h: _Dollars | None = None
    batch_factor: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    web_search: _Dollars | None = None
    input_audio: _Dollars | None = None
    cache_read_audio: _Dollars | None = None
    output_audio: _Dollars | None = None
    output_image: _Dollars | None = None


class BadPrices(ValueError):
    """The owner's price file cannot be used; the text names the file's entry and field."""


def load(path: Path) -> dict[tuple[str, str], Listed]:
    """The file's models by (provider, name). Raises `BadPrices`."""
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except OSError as error:
        raise BadPrices(f"{path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadPrices(f"{path}: {error}") from None
    return dict(_model(path, key, raw) for key, raw in entries.items())


def _model(path: Path, key: str, raw: msgspec.Raw) -> tuple[tuple[str, str], Listed]:
    provider, _, name = key.partition("/")
    if provider not in PROVIDERS.values() or not name:
        known = ", ".join(sorted(PROVIDERS.values()))
        raise BadPrices(f'{path}: "{key}" is not "provider/model" with one of the providers {known}')
    try:
        entry = msgspec.json.decode(raw, type=_Entry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadPrices(f'{path}: "{key}": {error}') from None
    said = msgspec.structs.asdict(entry)
    factor = said.pop("batch_factor")
    searches = said.pop("web_search")
    exact: dict[str, Decimal] = {name: Decimal(str(dollars)) for name, dollars in said.items() if dollars is not None}
    rates: Rates = {name: ((-1, picos(dollars, 10**6)),) for name, dollars in exact.items()}
    if searches is not None:
        rates = {**rates, "web_search": ((-1, picos(searches, 1000)),)}
    specials: tuple[Special, ...] = ()
    if factor is not None:
        share = Fraction(str(factor))
        specials = (
            Special(
                frozenset({("processing", "batch")}),
                0.0,
                {name: ((-1, round(Fraction(dollars) * share * 10**6)),) for name, dollars in exact.items()},
            ),
        )
    return (provider, plain(name)), Listed(key, None, ((0.0, rates),), specials)

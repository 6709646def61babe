"""The OpenAI models that exist here, and how the API shows them."""

from service.simulator.answering import ForeignModel
from service.simulator.errors import ApiError

_LONG, _SHORT, _OUT, _OUT_SMALL = 1_050_000, 128_000, 128_000, 16_384  # tokens; plausible rather than checked
_CREATED = 1_767_225_600
_WRITES = (  # their cache writes have a price
    "gpt-6.2-astra",
    "gpt-6.2-sol",
    "gpt-6.1-sol",
    "gpt-6.1-terra",
    "gpt-6-astra",
    "gpt-6-sol",
    "gpt-6-luna",
    "gpt-5.6-sol",
    "gpt-5.6-terra",
    "gpt-5.6-luna",
)
_OTHERS = (
    "gpt-5.5-2026-04-23",
    "gpt-5.4",
    "gpt-5.2-2025-12-11",
    "gpt-5-2025-08-07",
    "gpt-5-mini-2025-08-07",
    "gpt-5-nano-2025-08-07",
)
_OLD = ("gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18")
MODELS = (
    *(ForeignModel(name, _LONG, _OUT, bills_cache_writes=True) for name in _WRITES),
    *(ForeignModel(name, _LONG, _OUT) for name in _OTHERS),
    *(ForeignModel(name, _SHORT, _OUT_SMALL) for name in _OLD),
)
_DATE = len("-2026-04-23")
_BY_NAME = {name: model for model in MODELS for name in (model.id, model.id[:-_DATE]) if name.startswith("gpt-")}


def find(name: str) -> ForeignModel:
    """The model of that name, with its date or without; raises the 404 that the API gives."""
    if name not in _BY_NAME:
        message = f"The model `{name}` does not exist or you do not have access to it."
        raise ApiError(404, "invalid_request_error", message, code="model_not_found")
    return _BY_NAME[name]


def describe(model: ForeignModel) -> dict[str, object]:
    """The model as the API shows it."""
    return {"id": model.id, "object": "model", "created": _CREATED, "owned_by": "system"}

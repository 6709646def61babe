"""The Gemini models that exist here, and how the API shows them."""

from service.simulator.answering import ForeignModel
from service.simulator.errors import ApiError, invalid

_LONG, _OUT = 1_048_576, 65_536  # tokens; plausible for the newest rather than checked
_NAMES = (
    "gemini-4-argon",
    "gemini-3.8-flash",
    "gemini-3.7-flash",
    "gemini-3.6-flash",
    "gemini-3.5-flash",
    "gemini-3.1-pro-preview",
    "gemini-3-flash-preview",
    "gemini-2.5-pro",
    "gemini-2.5-flash",
    "gemini-2.5-flash-lite",
)
MODELS = tuple(ForeignModel(name, _LONG, _OUT) for name in _NAMES)
_ALIASES = {"gemini-flash-latest": "gemini-3.8-flash", "gemini-pro-latest": "gemini-3.1-pro-preview"}
_BY_NAME = {model.id: model for model in MODELS}
_LARGEST_PAGE = 1000


def find(name: str, version: str) -> ForeignModel:
    """The model of that name or alias; raises the 404 that the API gives."""
    found = _BY_NAME.get(_ALIASES.get(name, name))
    if found is None:
        raise ApiError(
            404,
            "NOT_FOUND",
            f"models/{name} is not found for API version {version}, or is not supported for generateContent. "
            "Call ListModels to see the list of available models and their supported methods.",
        )
    return found


def describe(model: ForeignModel) -> dict[str, object]:
    """The model as the API shows it."""
    return {
        "name": f"models/{model.id}",
        "version": "001",
        "displayName": model.id.replace("-", " ").title(),
        "description": "A model of the simulator",
        "inputTokenLimit": model.context,
        "outputTokenLimit": model.max_output,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
        "temperature": 1,
        "topP": 0.95,
        "topK": 64,
        "maxTemperature": 2,
        "thinking": True,
    }


def page(query: dict[str, str]) -> dict[str, object]:
    """One page of the list, by `pageSize` (50 unless told) and `pageToken`."""
    size, token = query.get("pageSize", "50"), query.get("pageToken", "0")
    if not size.isdecimal() or not token.isdecimal():
        raise invalid("pageSize and pageToken must be numbers that the API gave")
    start = int(token)
    end = start + min(int(size) or 50, _LARGEST_PAGE)
    found: dict[str, object] = {"models": [describe(model) for model in MODELS[start:end]]}
    return {**found, "nextPageToken": str(end)} if end < len(MODELS) else found

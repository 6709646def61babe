"""The models that exist here, and how the Models API shows them."""

from dataclasses import dataclass
from functools import cached_property

from service.simulator.errors import invalid, not_found


@dataclass(frozen=True)
class Model:
    """One model: what it is called and what it allows."""

    id: str
    name: str
    created: str  # RFC 3339 date
    context: int  # tokens
    max_tokens: int
    alias: str = ""
    retires: str = ""  # RFC 3339 date, when deprecated

    @cached_property
    def line(self) -> str:
        """haiku, sonnet, opus, fable or mythos."""
        return self.id.split("-")[1]

    @cached_property
    def generation(self) -> tuple[int, ...]:
        """(4, 6) for claude-opus-4-6."""
        return tuple(int(part) for part in self.id.split("-")[2:4])

    @cached_property
    def limit_class(self) -> str:
        """The models that share rate limits: 4.x of a line, Fable 5.x with Mythos (Rate limits page)."""
        if self.line in ("fable", "mythos"):
            return f"fable-{self.generation[0]}"
        return f"{self.line}-4" if self.generation[0] == 4 else self.id

    @cached_property
    def allows(self) -> dict[str, bool]:
        """What newer models took away: prefill and manual thinking, then forced tools and no thinking at all."""
        large = self.line in ("fable", "mythos")
        newest = self.id == "claude-opus-5-5" or (large and self.generation >= (5, 1))
        return {
            "prefill": self.generation < (4, 6),
            "adaptive": self.generation >= (4, 6),
            "between_tools": self.generation >= (5,),
            "enabled": self.generation < (4, 7),
            "disabled": not large and self.id != "claude-opus-5-5",
            "forced_tools": not newest,
            "sampling": self.generation < (4, 7),
        }


_LONG, _SHORT, _OUT, _OUT_SMALL = 1_000_000, 200_000, 128_000, 64_000

MODELS = (  # newest first; dates before 2026-09 and all sizes are plausible rather than checked
    Model("claude-fable-5-2", "Claude Fable 5.2", "2026-11-09", _LONG, _OUT),
    Model("claude-mythos-5-2", "Claude Mythos 5.2", "2026-11-09", _LONG, _OUT),
    Model("claude-haiku-5-5", "Claude Haiku 5.5", "2026-10-07", _LONG, _OUT),
    Model("claude-sonnet-5-5", "Claude Sonnet 5.5", "2026-09-28", _LONG, _OUT),
    Model("claude-fable-5-1", "Claude Fable 5.1", "2026-09-24", _LONG, _OUT),
    Model("claude-mythos-5-1", "Claude Mythos 5.1", "2026-09-24", _LONG, _OUT),
    Model("claude-opus-5-5", "Claude Opus 5.5", "2026-09-22", _LONG, _OUT),
    Model("claude-sonnet-5", "Claude Sonnet 5", "2026-07-14", _LONG, _OUT),
    Model("claude-fable-5", "Claude Fable 5", "2026-07-01", _LONG, _OUT),
    Model("claude-mythos-5", "Claude Mythos 5", "2026-07-01", _LONG, _OUT),
    Model("claude-opus-5", "Claude Opus 5", "2026-06-23", _LONG, _OUT),
    Model("claude-opus-4-8", "Claude Opus 4.8", "2026-05-19", _LONG, _OUT),
    Model("claude-opus-4-7", "Claude Opus 4.7", "2026-04-16", _LONG, _OUT),
    Model("claude-sonnet-4-6", "Claude Sonnet 4.6", "2026-02-17", _LONG, _OUT),
    Model("claude-opus-4-6", "Claude Opus 4.6", "2026-02-05", _LONG, _OUT),
    Model("claude-opus-4-5-20251101", "Claude Opus 4.5", "2025-11-24", _SHORT, _OUT_SMALL, "claude-opus-4-5"),
    Model("claude-haiku-4-5-20251001", "Claude Haiku 4.5", "2025-10-15", _SHORT, _OUT_SMALL, "claude-haiku-4-5"),
    Model(
        "claude-sonnet-4-5-20250929",
        "Claude Sonnet 4.5",
        "2025-09-29",
        _SHORT,
        _OUT_SMALL,
        "claude-sonnet-4-5",
        "2026-11-30",
    ),
)
_BY_NAME = {name: model for model in MODELS for name in (model.id, model.alias) if name}


def find(name: str) -> Model:
    """The model of that id or alias; raises the 404 that the API gives."""
    if name not in _BY_NAME:
        raise not_found(f"model: {name}")
    return _BY_NAME[name]


def describe(model: Model) -> dict[str, object]:
    """The model as `GET /v1/models/{id}` shows it."""
    retires = f"{model.retires}T00:00:00Z" if model.retires else None
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.name,
        "created_at": f"{model.created}T00:00:00Z",
        "lifecycle": "deprecated" if retires else "active",
        "line": model.line,
        "max_input_tokens": model.context,
        "max_tokens": model.max_tokens,
        "deprecated_at": f"{MODELS[0].created}T00:00:00Z" if retires else None,
        "retires_at": retires,
        "capabilities": _capabilities(model),
    }


def _capabilities(model: Model) -> dict[str, object]:
    yes = {"supported": True}
    effort = model.generation >= (4, 6)
    kinds = ("adaptive", "between_tools", "disabled", "enabled")
    edits = ("clear_thinking_20251015", "clear_tool_uses_20250919", "compact_20260112")
    return {
        **dict.fromkeys(("batch", "citations", "code_execution", "image_input", "pdf_input"), yes),
        "structured_outputs": yes,
        "server_tools": {"supported": True, "code_execution": yes, "web_search": yes},
        "context_management": {"supported": True, **dict.fromkeys(edits, yes)},
        "effort": {
            "supported": effort,
            **{level: {"supported": effort} for level in ("low", "medium", "high", "xhigh", "max")},
        },
        "thinking": {"supported": True, "types": {kind: {"supported": model.allows[kind]} for kind in kinds}},
    }


def page(items: list[dict[str, object]], query: dict[str, str]) -> dict[str, object]:
    """One page of a list, by `limit` (20 unless told), `after_id`, `before_id` or the cursor `page`.

    Has the fields of both page styles of the API. Raises a 400 that names a bad parameter.
    """
    limit = query.get("limit", "20")
    if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
        raise invalid("limit: Input should be between 1 and 1000")
    size, ids = int(limit), [str(item["id"]) for item in items]
    if before := query.get("before_id"):
        end = _place(ids, before, "before_id")
        start = max(0, end - size)
        more = start > 0
    else:
        after = query.get("after_id") or query.get("page", "").removeprefix("page_")
        start = _place(ids, after, "after_id") + 1 if after else 0
        end = start + size
        more = end < len(items)
    some = items[start:end]
    first, last = (some[0]["id"], some[-1]["id"]) if some else (None, None)
    following = f"page_{last}" if more else None
    return {"data": some, "has_more": more, "first_id": first, "last_id": last, "next_page": following}


def _place(ids: list[str], wanted: str, field: str) -> int:
    if wanted not in ids:
        raise invalid(f"{field}: no such object: {wanted}")
    return ids.index(wanted)

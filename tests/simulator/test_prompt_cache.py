"""Prompt caching, by a clock that is only a number."""

from typing import Any

import msgspec
import pytest

from service.simulator.errors import ApiError
from service.simulator.prompt_cache import InputUsage, PromptCache
from service.simulator.request import Request, decode
from tests.simulator.conftest import body


def text(letter: str, ttl: str | None = None) -> dict[str, Any]:
    """A block of 100 tokens, marked when it has a ttl."""
    mark = {"cache_control": {"type": "ephemeral", "ttl": ttl}} if ttl else {}
    return {"type": "text", "text": letter * 400, **mark}


def use(
    cache: PromptCache, *blocks: dict[str, Any], now: float = 0, owner: str = "key model", **more: Any
) -> InputUsage:
    request = body(messages=[{"role": "user", "content": list(blocks)}], **more)
    return cache.use(owner, decode(msgspec.json.encode(request), Request), now)


def test_a_marked_prefix_is_written_once_and_read_afterwards() -> None:
    cache = PromptCache()
    assert use(cache, text("a", "5m"), text("b")) == InputUsage(plain=100, written_5m=100)
    assert use(cache, text("a", "5m"), text("c")) == InputUsage(plain=100, read=100)


def test_reads_do_not_count_towards_the_input_limit() -> None:
    assert InputUsage(plain=1, written_5m=2, written_1h=3, read=100).limited == 6


def test_a_growing_conversation_reads_what_it_wrote_before_and_writes_the_rest() -> None:
    cache = PromptCache()
    use(cache, text("a", "5m"))
    assert use(cache, text("a"), text("b", "5m")) == InputUsage(written_5m=100, read=100)


def test_a_prefix_is_forgotten_after_its_lifetime_unless_it_was_read() -> None:
    cache = PromptCache()
    use(cache, text("a", "5m"))
    assert use(cache, text("a", "5m"), now=299).read == 100
    assert use(cache, text("a", "5m"), now=598).read == 100
    assert use(cache, text("a", "5m"), now=899).written_5m == 100


def test_the_two_lifetimes_are_written_apart() -> None:
    cache = PromptCache()
    assert use(cache, text("a", "1h"), text("b", "5m")) == InputUsage(written_5m=100, written_1h=100)


def test_keys_and_models_do_not_read_each_others_prefixes() -> None:
    cache = PromptCache()
    use(cache, text("a", "5m"))
    assert use(cache, text("a", "5m"), owner="other").read == 0


def test_a_mark_on_the_request_itself_keeps_the_whole_prompt() -> None:
    cache = PromptCache()
    assert use(cache, text("a"), cache_control={"type": "ephemeral"}) == InputUsage(written_5m=100)


def test_more_than_four_marks_are_refused() -> None:
    with pytest.raises(ApiError, match="maximum of 4"):
        use(PromptCache(), *(text(letter, "5m") for letter in "abcde"))

"""Which requests may share an answer, and what a worker keeps of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.policy.cache import forbids, key
from service.store.answers import Answers

ASKED = ("alice", "anthropic", "POST", "/v1/messages", [(b"anthropic-version", b"1"), (b"x-api-key", b"k")], b"{}")


def test_the_same_request_has_the_same_key_whatever_its_headers_order_and_ids() -> None:
    client, provider, method, target, headers, body = ASKED
    also = [*reversed(headers), (b"user-agent", b"curl"), (b"x-stainless-retry-count", b"1"), (b"traceparent", b"00-1")]
    assert key(client, provider, method, target, also, body) == key(*ASKED)


@pytest.mark.parametrize(
    ("place", "other"),
    [
        (0, "bob"), (0, None), (1, "openai"), (2, "GET"), (3, "/v1/messages?beta=true"),
        (4, [(b"anthropic-version", b"2"), (b"x-api-key", b"k")]),
        (4, [(b"anthropic-version", b"1"), (b"x-api-key", b"other")]),
        (4, [(b"anthropic-version", b"1"), (b"x-api-key", b"k"), (b"anthropic-beta", b"b")]),
        (4, [(b"anthropic-version", b"1"), (b"x-api-key", b"k"), (b"accept-encoding", b"gzip")]),
        (5, b"{ }"),
    ],
)  # fmt: skip
def test_anything_that_may_change_the_answer_or_its_owner_changes_the_key(place: int, other: object) -> None:
    changed: list[Any] = list(ASKED)
    changed[place] = other
    assert key(*changed) != key(*ASKED)


def test_a_boundary_between_two_parts_cannot_be_moved() -> None:
    assert key("a", "b", "", "", [], b"") != key("ab", "", "", "", [], b"")
    assert key(None, "p", "", "", [], b"") != key("", "p", "", "", [], b"")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"no-cache", True), (b"No-Store", True), (b"max-age=0", True), (b"max-age=60, no-cache", True), (b"max-age=60", False)],
)  # fmt: skip
def test_a_client_may_ask_for_an_answer_of_its_own(value: bytes, expected: bool) -> None:
    assert forbids([(b"cache-control", value)]) is expected
    assert not forbids([])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_is_there_until_its_time_is_over() -> None:
    clock = Clock()
    answers = Answers(8000, 10.0, clock)
    answers.keep(b"k", (), b"body")
    clock.now = 9.9
    kept = answers.find(b"k")
    assert kept is not None
    assert (kept.body, round(answers.age(kept), 3)) == (b"body", 9.9)
    clock.now = 10.0
    assert answers.find(b"k") is None


def test_the_least_recently_used_goes_first() -> None:
    answers = Answers(8 * 1512, 10.0, Clock())
    for name in b"abcdefgh":
        answers.keep(bytes([name]), (), b"x" * 1000)
    assert answers.find(b"a") is not None
    answers.keep(b"i", (), b"x" * 1000)
    assert (answers.find(b"a") is not None, answers.find(b"b")) == (True, None)


def test_an_answer_over_an_eighth_of_the_room_is_not_kept_and_drives_nothing_out() -> None:
    answers = Answers(8000, 10.0, Clock())
    answers.keep(b"a", (), b"x" * 1000)
    answers.keep(b"b", (), b"x" * 1001)
    assert (answers.find(b"a") is not None, answers.find(b"b")) == (True, None)


def test_many_small_answers_do_not_take_many_times_the_room() -> None:
    answers = Answers(100_000, 10.0, Clock())
    names = [n.to_bytes(2) for n in range(1000)]
    for name in names:
        answers.keep(name, (), b"x")
    assert sum(answers.find(name) is not None for name in names) < 200


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 200)), max_size=200))
def test_the_bound_holds_whatever_is_kept(sizes: list[tuple[int, int]]) -> None:
    answers = Answers(4000, 10.0, Clock())
    for name, size in sizes:
        answers.keep(bytes([name]), (), b"x" * size)
        held = [kept for n in range(31) if (kept := answers.find(bytes([n]))) is not None]
        assert sum(len(kept.body) for kept in held) <= 4000

"""Token buckets, by a clock that is only a number."""

import pytest

from service.simulator.config import Limits
from service.simulator.errors import ApiError
from service.simulator.limits import Bucket, Limiter, Pool
from service.simulator.models import find


def test_a_bucket_holds_a_minutes_worth_and_says_how_long_to_wait_for_more() -> None:
    bucket = Bucket(60, now=0)
    assert bucket.wait(60, now=0) == 0
    bucket.take(60, now=0)
    assert bucket.wait(1, now=0) == 1
    assert bucket.wait(30, now=0) == 30


def test_a_bucket_refills_continuously_and_never_beyond_its_limit() -> None:
    bucket = Bucket(60, now=0)
    bucket.take(60, now=0)
    assert bucket.level(now=0.5) == pytest.approx(0.5)
    assert bucket.level(now=30) == pytest.approx(30)
    assert bucket.level(now=1000) == 60


def test_more_than_the_limit_is_had_once_the_bucket_is_full() -> None:
    bucket = Bucket(60, now=0)
    assert bucket.wait(1_000, now=0) == 0
    bucket.take(1_000, now=0)
    assert bucket.wait(1_000, now=0) == 1_000


def test_output_is_not_reserved_but_a_debt_must_be_paid_back_first() -> None:
    pool = Pool(Limits(1000, 1000, 60), now=0)
    pool.admit(1, now=0)
    pool.produced(160, now=0)
    with pytest.raises(ApiError) as refused:
        pool.admit(1, now=0)
    assert refused.value.status == 429
    assert "output tokens" in refused.value.message
    assert refused.value.headers["retry-after"] == "101"
    pool.admit(1, now=101)


@pytest.mark.parametrize(
    ("limits", "named"), [(Limits(1, 9999, 9999), "1 requests per minute"), (Limits(99, 60, 9999), "60 input tokens")]
)
def test_the_429_names_the_limit_in_the_way(limits: Limits, named: str) -> None:
    pool = Pool(limits, now=0)
    pool.admit(60, now=0)
    with pytest.raises(ApiError, match=named):
        pool.admit(60, now=0)


def test_a_refused_request_uses_nothing_up() -> None:
    pool = Pool(Limits(10, 60, 60), now=0)
    pool.admit(60, now=0)
    with pytest.raises(ApiError):
        pool.admit(60, now=0)
    assert pool.headers(0)["anthropic-ratelimit-requests-remaining"] == "9"


def test_headers_round_tokens_to_thousands_and_show_the_scarcer_limit_as_tokens() -> None:
    pool = Pool(Limits(50, 30_000, 8_000), now=0)
    pool.admit(12_400, now=0)
    pool.produced(600, now=0)
    prefix = "anthropic-ratelimit-"
    assert pool.headers(0) == {
        f"{prefix}requests-limit": "50",
        f"{prefix}requests-remaining": "49",
        f"{prefix}requests-reset": "1970-01-01T00:00:02Z",
        f"{prefix}input-tokens-limit": "30000",
        f"{prefix}input-tokens-remaining": "18000",
        f"{prefix}input-tokens-reset": "1970-01-01T00:00:25Z",
        f"{prefix}output-tokens-limit": "8000",
        f"{prefix}output-tokens-remaining": "7000",
        f"{prefix}output-tokens-reset": "1970-01-01T00:00:05Z",
        f"{prefix}tokens-limit": "30000",
        f"{prefix}tokens-remaining": "18000",
        f"{prefix}tokens-reset": "1970-01-01T00:00:25Z",
    }


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("claude-opus-4-6", "claude-opus-4-8", True),
        ("claude-fable-5", "claude-mythos-5-2", True),
        ("claude-opus-5-5", "claude-opus-5", False),
        ("claude-sonnet-4-6", "claude-opus-4-6", False),
    ],
)
def test_some_models_share_their_limits(one: str, other: str, shared: bool) -> None:
    limiter = Limiter(None)
    assert (limiter.pool("key", find(one), 0) is limiter.pool("key", find(other), 0)) is shared


def test_keys_do_not_share_limits() -> None:
    limiter = Limiter(None)
    model = find("claude-opus-5-5")
    assert limiter.pool("one", model, 0) is not limiter.pool("other", model, 0)

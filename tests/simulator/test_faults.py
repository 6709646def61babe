"""Reading scenarios and choosing them by schedule."""

import pytest

from service.simulator.errors import ApiError
from service.simulator.faults import Rule, Schedule, decode_rules, parse


def test_a_scenario_is_pairs_and_flags() -> None:
    scenario = parse("fault=cut; after=3 ;gap_ms=2.5;gzip;crlf=false")
    assert (scenario.fault, scenario.after, scenario.gap_ms, scenario.gzip, scenario.crlf) == (
        "cut",
        3,
        2.5,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [("chunk=3", "chunk"), ("fault=nonsense", "fault"), ("after=many", "after"), ("gzip=maybe", "gzip")],
)
def test_what_is_not_understood_is_named(text: str, named: str) -> None:
    with pytest.raises(ApiError, match=named) as refused:
        parse(text)
    assert refused.value.status == 400


def faults(schedule: Schedule, times: list[float], path: str = "/v1/messages") -> list[str]:
    return [scenario.fault if (scenario := schedule.choose(path, now)) else "" for now in times]


def test_a_rule_can_mean_the_nth_request() -> None:
    schedule = Schedule((Rule("fault=spend", nth=2),), now=0)
    assert faults(schedule, [0.0] * 4) == ["", "spend", "", ""]


def test_a_rule_can_mean_every_kth_request_and_the_first_rule_that_holds_wins() -> None:
    schedule = Schedule((Rule("fault=cut", nth=4), Rule("fault=spend", every=2)), now=0)
    assert faults(schedule, [0.0] * 6) == ["", "spend", "", "cut", "", "spend"]


def test_a_rule_can_mean_a_time_window() -> None:
    schedule = Schedule((Rule("fault=spend", between=(10, 20)),), now=100)
    assert faults(schedule, [100, 109.9, 110, 119.9, 120]) == ["", "", "spend", "spend", ""]


def test_a_rule_can_be_a_matter_of_chance_that_its_seed_repeats() -> None:
    rules = (Rule("fault=spend", probability=0.3, seed=7),)
    first, second = (faults(Schedule(rules, now=0), [0.0] * 1000) for _ in range(2))
    assert first == second
    assert 250 < first.count("spend") < 350


def test_a_rule_counts_only_requests_to_its_path() -> None:
    schedule = Schedule((Rule("fault=spend", path="/v1/models", nth=1),), now=0)
    assert faults(schedule, [0.0]) == [""]
    assert faults(schedule, [0.0], "/v1/models") == ["spend"]


def test_a_path_that_ends_in_a_star_means_all_that_begin_so() -> None:
    schedule = Schedule((Rule("fault=spend", path="/openai/*", nth=2),), now=0)
    assert faults(schedule, [0.0], "/v1/messages") == [""]
    assert faults(schedule, [0.0], "/openai/v1/responses") == [""]
    assert faults(schedule, [0.0], "/openai/v1/chat/completions") == ["spend"]


@pytest.mark.parametrize("text", [b"{", b'[{"nth": 3}]', b'[{"scenario": "", "when": 1}]'])
def test_a_schedule_that_is_not_understood_is_a_400(text: bytes) -> None:
    with pytest.raises(ApiError, match="schedule: "):
        decode_rules(text)

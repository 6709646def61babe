"""The arithmetic of a comparison of accounts, and the rules that say what is behind a difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.account import reconcile_ours
from service.account.ledger import Ledger
from service.account.reconcile import NOT_BY_TOKEN, Line, Ours, Theirs, compare, model_name, total
from service.account.reconcile_calls import OurCall, TheirCall, differences
from service.account.reconcile_causes import causes
from tests.support.book import NOON, row

DAY = "2026-11-22"
MIDNIGHT = NOON + 43_200


def line(ours: Ours, theirs: Theirs, *, fresh: bool = False, tolerance: float = 0.005, model: str = "m") -> Line:
    return Line(DAY, model, ours, theirs, fresh, tolerance)


def codes(*arguments: Any, **options: Any) -> list[str]:
    return [cause.code for cause in causes(line(*arguments, **options))]


HUNDRED = {"input": 100, "output": 100}
TWO_HUNDRED = {"input": 200, "output": 200}


def test_what_is_within_the_tolerance_is_no_difference() -> None:
    ours = Ours(calls=1, tokens={"input": 1000}, cost=1_000_000)
    assert codes(ours, Theirs({"input": 1005}, 1_005_000)) == []
    assert codes(ours, Theirs({"input": 1006}, 1_005_000)) != []
    assert codes(ours, Theirs({"input": 1000}, 1_006_000)) == ["prices"]
    assert codes(ours, Theirs({"input": 1000}, 1_001_000), tolerance=0) == []  # a millionth of a dollar: both round


def test_an_unknown_cost_is_no_difference() -> None:
    assert codes(Ours(calls=1, tokens=HUNDRED, cost=5_000_000), Theirs(HUNDRED, None)) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "code"),
    [
        (Ours(), Theirs(HUNDRED), "bypassed"),
        (Ours(calls=1, tokens=HUNDRED), Theirs(TWO_HUNDRED), "bypassed"),
        (Ours(calls=1, tokens=HUNDRED), Theirs(TWO_HUNDRED, by_key={"a": HUNDRED, "b": HUNDRED}), "other_key"),
        (Ours(calls=1, tokens=HUNDRED, removed=1), Theirs(TWO_HUNDRED), "rows_removed"),
        (Ours(calls=1, tokens=HUNDRED), Theirs(TWO_HUNDRED, batch=HUNDRED), "batch_not_fetched"),
        (Ours(calls=1, tokens=HUNDRED, ended_after=HUNDRED), Theirs(TWO_HUNDRED), "day_edge"),
        (Ours(calls=2, tokens=HUNDRED, unfinished=1, interrupted=1), Theirs(TWO_HUNDRED), "unfinished"),
        (Ours(calls=2, tokens=HUNDRED, began_before=HUNDRED), Theirs({}), "day_edge"),
        (Ours(calls=1, tokens=TWO_HUNDRED, batch=HUNDRED), Theirs(HUNDRED), "batch_day"),
        (Ours(calls=1, tokens=HUNDRED), Theirs({}), "other_account"),
    ],
)
def test_each_difference_of_tokens_has_its_likeliest_cause(ours: Ours, theirs: Theirs, code: str) -> None:
    assert codes(ours, theirs)[0] == code


def test_more_on_our_side_is_a_late_report_while_the_day_is_young() -> None:
    ours = Ours(calls=1, tokens=TWO_HUNDRED)
    assert codes(ours, Theirs(HUNDRED), fresh=True) == ["report_late"]
    assert codes(ours, Theirs(HUNDRED)) == ["other_account"]


def test_more_on_their_side_is_never_a_late_report() -> None:
    assert codes(Ours(), Theirs(HUNDRED), fresh=True) == ["bypassed"]


def test_a_cause_too_small_for_the_gap_stands_behind_one_that_is_not() -> None:
    ours = Ours(calls=11, tokens={"output": 1000}, unfinished=1, client_abort=1)
    assert codes(ours, Theirs({"output": 2000})) == ["unfinished"]
    assert codes(ours, Theirs({"output": 3000})) == ["bypassed", "unfinished"]  # twenty times our average call
    small = Ours(calls=1, tokens=HUNDRED)
    assert codes(small, Theirs(TWO_HUNDRED, batch={"output": 50}))[0] == "bypassed"
    assert codes(Ours(calls=1, tokens=HUNDRED, ended_after={"input": 50}), Theirs(TWO_HUNDRED)) == ["bypassed"]


@pytest.mark.parametrize(
    ("ours", "theirs", "code"),
    [
        (Ours(tokens=HUNDRED, cost=3_000_000, estimated_cost=2_000_000, estimated=1), Theirs(HUNDRED, 1_500_000), "estimates"),
        (Ours(tokens=HUNDRED, cost=3_000_000, estimated_cost=1_000_000, estimated=1), Theirs(HUNDRED, 1_500_000), "prices"),
        (Ours(tokens=HUNDRED, cost=3_000_000), Theirs(HUNDRED, 1_000_000, priority=HUNDRED), "priority"),
        (Ours(tokens=HUNDRED, cost=0, unpriced=1), Theirs(HUNDRED, 1_000_000), "unpriced"),
        (Ours(tokens=HUNDRED, cost=3_000_000), Theirs(HUNDRED, 1_000_000), "prices"),
        (Ours(tokens=HUNDRED, cost=1_000_000), Theirs(HUNDRED, 3_000_000), "prices"),
    ],
)  # fmt: skip
def test_money_that_differs_while_tokens_agree_has_its_own_causes(ours: Ours, theirs: Theirs, code: str) -> None:
    assert codes(ours, theirs) == [code]


def test_money_is_named_apart_only_when_it_goes_against_the_tokens() -> None:
    assert codes(Ours(tokens=HUNDRED, cost=1_000_000), Theirs(TWO_HUNDRED, 2_000_000)) == ["bypassed"]
    assert codes(Ours(tokens=HUNDRED, cost=3_000_000), Theirs(TWO_HUNDRED, 2_000_000)) == ["bypassed", "prices"]


def test_what_is_not_paid_by_the_token_is_about_tools() -> None:
    assert codes(Ours(), Theirs({}, 1_000_000), model=NOT_BY_TOKEN) == ["tools"]


def test_every_cause_has_a_sentence() -> None:
    (cause,) = causes(line(Ours(calls=1, tokens=HUNDRED, unfinished=1, interrupted=1), Theirs(TWO_HUNDRED)))
    assert cause.sentence.startswith("1 call without a final count on our side (1 interrupted): killed workers")


def test_a_day_is_fresh_until_an_hour_after_its_end() -> None:
    ours = {(DAY, "m"): Ours()}
    assert [each.fresh for each in compare(ours, {}, now=MIDNIGHT + 3599, tolerance=0)] == [True]
    assert [each.fresh for each in compare(ours, {}, now=MIDNIGHT + 3600, tolerance=0)] == [False]


def test_a_day_without_a_cost_row_cost_nothing_there_unless_there_is_no_report() -> None:
    ours = {(DAY, "m"): Ours(cost=5)}
    assert compare(ours, {}, now=0, tolerance=0)[0].theirs.cost == 0
    assert compare(ours, {}, now=0, tolerance=0, costs=False)[0].theirs.cost is None


def test_sums_are_over_all_lines() -> None:
    lines = [line(Ours(tokens=HUNDRED, cost=1), Theirs(TWO_HUNDRED, 2)), line(Ours(tokens=HUNDRED, cost=1), Theirs())]
    assert total(lines) == (TWO_HUNDRED, TWO_HUNDRED, 2, 2)


@pytest.mark.parametrize("name", ["claude-haiku-4-5-20251001", "Claude-Haiku-4-5", "claude-haiku-4-5[1m]"])
def test_one_model_has_one_name(name: str) -> None:
    assert model_name(name) == "claude-haiku-4-5"


def sums(directory: Path, *rows: Any, since: str = DAY, until: str = DAY) -> dict[tuple[str, str], Ours]:
    ledger = Ledger(directory)
    ledger.add(rows)
    try:
        return reconcile_ours.sums(ledger, since, until)
    finally:
        ledger.close()


def test_the_ledgers_tokens_are_told_apart_as_the_reports_do(tmp_path: Path) -> None:
    used: dict[str, Any] = {"cache_read_tokens": 300, "cache_write_tokens": 500, "cache_write_1h_tokens": 400}
    found = sums(tmp_path, row(**used), row(answered_model="claude-haiku-4-5-20251001"))
    assert found[DAY, "claude-opus-5-5"].tokens == {
        "input": 200, "cache_read": 300, "cache_write_5m": 100, "cache_write_1h": 400, "output": 200,
    }  # fmt: skip
    assert found[DAY, "claude-haiku-4-5"].calls == 1


def test_only_what_claude_may_have_billed_is_counted(tmp_path: Path) -> None:
    nothing = {"input_tokens": None, "output_tokens": None}
    found = sums(
        tmp_path,
        row(provider="openai"),
        row(cached=True),
        row(certainty=None, **nothing),  # count_tokens
        row(outcome="upstream_429", **nothing),
        row(kind="fan_out"),
        row(),
    )
    assert [(key, each.calls, each.removed) for key, each in found.items()] == [((DAY, "claude-opus-5-5"), 1, 0)]


def test_a_call_over_midnight_counts_on_its_last_day_and_is_told_on_both(tmp_path: Path) -> None:
    over = row(started=MIDNIGHT - 5, ended=MIDNIGHT + 5)
    key, after = (DAY, "claude-opus-5-5"), ("2026-11-23", "claude-opus-5-5")
    found = sums(tmp_path, over, until="2026-11-23")
    assert (found[key].calls, found[key].ended_after["output"]) == (0, 200)
    assert (found[after].calls, found[after].began_before["output"]) == (1, 200)
    assert sums(tmp_path)[key].ended_after["output"] == 200
    assert sums(tmp_path, since="2026-11-23", until="2026-11-23")[after].began_before["output"] == 200


def test_an_interrupted_call_counts_on_the_day_it_began(tmp_path: Path) -> None:
    lost = row(ended=None, outcome="interrupted", certainty="unpriced", input_tokens=None, output_tokens=None)
    (ours,) = sums(tmp_path, lost).values()
    assert (ours.calls, ours.interrupted, ours.unfinished, ours.unpriced) == (1, 1, 1, 1)


def test_the_results_of_batches_and_estimates_are_known_apart(tmp_path: Path) -> None:
    batch = row(kind="batch_result", tier="batch", started=NOON - 5 * 86_400)
    left = row(certainty="estimated", outcome="client_abort", cost_output=7_000_000)
    (ours,) = sums(tmp_path, batch, left).values()
    assert (ours.batch["output"], ours.began_before) == (200, {})
    assert (ours.estimated, ours.estimated_cost, ours.client_abort, ours.unfinished) == (1, 12_000_000, 1, 1)


def test_calls_that_are_gone_from_the_ledger_are_known_by_its_sums(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add([row(started=NOON - 60), row()])
    assert ledger.prune(NOON) == 1
    ledger.close()
    (ours,) = sums(tmp_path).values()
    assert (ours.calls, ours.removed) == (1, 1)


def test_tools_are_money_that_no_token_stands_for(tmp_path: Path) -> None:
    found = sums(tmp_path, row(cost_tools=10_000_000))
    assert {key[1]: each.cost for key, each in found.items()} == {
        "claude-opus-5-5": 10_000_000,
        NOT_BY_TOKEN: 10_000_000,
    }


def our_call(**fields: Any) -> OurCall:
    defaults: dict[str, Any] = {
        "call_id": "c1", "trace_id": "t", "outcome": "ok", "request_id": "req_1", "response_id": "msg_1", "model": "m",
        "started": NOON, "ended": NOON + 5, "tokens": HUNDRED,
    }  # fmt: skip
    return OurCall(**defaults | fields)


def their_call(**fields: Any) -> TheirCall:
    defaults: dict[str, Any] = {
        "request_id": "req_1", "response_id": "msg_1", "model": "m", "key": "k", "started": NOON,
        "tokens": HUNDRED,
    }  # fmt: skip
    return TheirCall(**defaults | fields)


def test_calls_are_matched_by_either_of_the_providers_ids() -> None:
    assert differences([our_call(request_id=None)], [their_call()]) == []
    assert differences([our_call(response_id=None)], [their_call()]) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "code"),
    [
        ([our_call(tokens=TWO_HUNDRED)], [their_call()], "tokens"),
        ([our_call(tokens={}, outcome="client_abort")], [their_call()], "unfinished"),
        ([our_call(request_id=None, response_id=None, ended=None)], [their_call()], "unfinished"),
        ([our_call(tokens={}, outcome="client_abort")], [], "unfinished"),
        ([our_call()], [], "other_account"),
        ([], [their_call()], "bypassed"),
    ],
)
def test_a_call_that_differs_is_told_why(ours: list[OurCall], theirs: list[TheirCall], code: str) -> None:
    assert [each.code for each in differences(ours, theirs)] == [code]


def test_a_nameless_call_stands_for_one_of_theirs_of_its_time_and_model_only() -> None:
    nameless = our_call(request_id=None, response_id=None, ended=NOON + 1, tokens={}, outcome="interrupted")
    for other in (their_call(started=NOON + 60), their_call(model="another")):
        assert {each.code for each in differences([nameless], [other])} == {"unfinished", "bypassed"}
    two = [their_call(request_id="a", response_id="a"), their_call(request_id="b", response_id="b")]
    assert [each.code for each in differences([nameless], two)] == ["unfinished", "bypassed"]

# mypy: ignore-errors
"""What a user of the Anthropic Python SDK does, one check after the other; runs in that SDK's own environment.

Reads from stdin what to call and which checks to run (see `tests.clients.sdk`), writes one JSON line per check.
"""

import asyncio
import io
import json
import sys
import time
import traceback
import urllib.request
from contextlib import contextmanager

import anthropic

TASK = json.load(sys.stdin)
MODEL = "claude-opus-5-5"
PROMPT = [{"role": "user", "content": "Tell me about the river."}]
ASK = {"model": MODEL, "max_tokens": 256, "messages": PROMPT}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}
BETAS = ["context-1m-2025-08-07", "fine-grained-tool-streaming-2025-05-14"]
FINAL = "should_retry=false"  # so that neither the gateway nor the SDK tries again
ENOUGH = 33 * 1024 * 1024

CHECKS = {}


def check(function):
    """Make a function a check under its own name."""
    CHECKS[function.__name__] = function
    return function


class Run:
    """One check's SDK client and what is handed back about it."""

    def __init__(self, name):
        self.headers = {"traceparent": f"00-{TASK['traces'][name]}-00f067aa0ba902b7-01"}
        self.detail = {"request_ids": [], "usages": []}

    def options(self, scenario=None, **options):
        headers = self.headers | ({"x-simulator-scenario": scenario} if scenario else {})
        credentials = {} if "auth_token" in options else {"api_key": TASK["key"]}
        return {"base_url": TASK["base_url"], "default_headers": headers, "max_retries": 0} | credentials | options

    def client(self, scenario=None, **options):
        return anthropic.Anthropic(**self.options(scenario, **options))

    def saw(self, message):
        """Note usage and request id of a message that came whole."""
        usage = message.usage
        self.detail["usages"].append(
            {
                "input": usage.input_tokens,
                "output": usage.output_tokens,
                "cache_read": usage.cache_read_input_tokens or 0,
                "cache_write": usage.cache_creation_input_tokens or 0,
            }
        )
        if getattr(message, "_request_id", None):
            self.detail["request_ids"].append(message._request_id)
        return message

    @contextmanager
    def raises(self, kind, status):
        """The block must raise exactly that class of the SDK, with a request id, a type and a message."""
        raised = None
        try:
            yield self
        except anthropic.APIStatusError as error:
            raised = error
        assert type(raised) is kind, f"{raised!r} instead of {kind}"
        assert raised.status_code == status, raised.status_code
        assert raised.request_id, "the SDK sees no request id"
        assert raised.body["type"] == "error", raised.body
        assert raised.body["error"]["message"], raised.body
        assert raised.body["request_id"] == raised.request_id, (raised.body, raised.request_id)
        self.detail["request_ids"].append(raised.request_id)
        self.error = raised


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def schedule(*rules):
    request = urllib.request.Request(
        TASK["direct"]["url"] + "/_simulator/schedule", json.dumps(rules).encode(), method="POST"
    )
    urllib.request.urlopen(request, timeout=10).close()


@check
def creates_a_message(run):
    message = run.saw(run.client().messages.create(**ASK))
    assert text_of(message)
    assert (message.role, message.stop_reason, message.model) == ("assistant", "end_turn", MODEL)


@check
def creates_a_message_asynchronously(run):
    async def ask():
        async with anthropic.AsyncAnthropic(**run.options()) as client:
            return await client.messages.create(**ASK)

    assert text_of(run.saw(asyncio.run(ask())))


@check
def streams_with_the_helper(run):
    with run.client("ping_every=3").messages.stream(**ASK) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("text") > 2
    assert text_of(run.saw(final)) == stream.get_final_text()


@check
def streams_text_with_the_helper(run):
    with run.client().messages.stream(**ASK) as stream:
        pieces = list(stream.text_stream)
    assert len(pieces) > 2
    assert "".join(pieces) == text_of(run.saw(stream.get_final_message()))


@check
def streams_raw_events(run):
    text, usage = "", {}
    scenario = "message_deltas=3;unknown_events;comments;crlf;split=7"
    for event in run.client(scenario).messages.create(**ASK, stream=True):
        if event.type == "message_start":
            usage = event.message.usage.model_dump()
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            text += event.delta.text
        elif event.type == "message_delta":
            usage |= {k: v for k, v in event.usage.model_dump().items() if v is not None}
    assert text
    assert event.type == "message_stop"
    run.detail["usages"].append({"input": usage["input_tokens"], "output": usage["output_tokens"]})


@check
def streams_asynchronously(run):
    async def ask():
        async with anthropic.AsyncAnthropic(**run.options()) as client, client.messages.stream(**ASK) as stream:
            pieces = [piece async for piece in stream.text_stream]
            return pieces, await stream.get_final_message()

    pieces, final = asyncio.run(ask())
    assert len(pieces) > 2
    assert "".join(pieces) == text_of(run.saw(final))


@check
def reuses_a_cached_prompt(run):
    system = [{"type": "text", "text": f"{TASK['client']} " * 3000, "cache_control": {"type": "ephemeral"}}]
    client = run.client()
    first, second = (run.saw(client.messages.create(**ASK, system=system)) for _ in range(2))
    assert first.usage.cache_creation_input_tokens > 1000
    assert second.usage.cache_read_input_tokens == first.usage.cache_creation_input_tokens


@check
def uses_a_tool(run):
    asked = run.saw(run.client("tool=get_weather").messages.create(**ASK, tools=[WEATHER]))
    assert asked.stop_reason == "tool_use"
    call = next(block for block in asked.content if block.type == "tool_use")
    assert isinstance(call.input["city"], str)
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]}
    turns = [*PROMPT, {"role": "assistant", "content": asked.content}, result]
    answer = run.saw(run.client().messages.create(model=MODEL, max_tokens=256, messages=turns, tools=[WEATHER]))
    assert answer.stop_reason == "end_turn"


@check
def streams_a_tool_call(run):
    with run.client("tool=get_weather;chunks=5").messages.stream(**ASK, tools=[WEATHER]) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
    call = next(block for block in run.saw(stream.get_final_message()).content if block.type == "tool_use")
    assert json.loads("".join(pieces)) == call.input
    assert call.input["days"] == 7


@check
def thinks(run):
    message = run.saw(run.client().messages.create(**ASK, thinking={"type": "adaptive"}))
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].signature


@check
def streams_thinking(run):
    with run.client().messages.stream(**ASK, thinking={"type": "adaptive"}) as stream:
        pieces = [event.thinking for event in stream if event.type == "thinking"]
    thought = run.saw(stream.get_final_message()).content[0]
    assert thought.thinking == "".join(pieces) != ""
    assert thought.signature


@check
def counts_tokens(run):
    assert run.client().messages.count_tokens(model=MODEL, messages=PROMPT).input_tokens > 0


@check
def lists_models_page_by_page(run):
    client = run.client()
    first = client.models.list(limit=5)
    assert first.has_more
    ids = [model.id for model in first]
    assert len(ids) == len(set(ids)) > 10
    assert MODEL in ids
    assert ids == [model.id for model in client.models.list(limit=1000).data]


@check
def retrieves_a_model(run):
    assert run.client().models.retrieve(MODEL).id == MODEL


def batch_of(number):
    return [{"custom_id": f"nr-{i}", "params": ASK} for i in range(number)]


def ended(client, batch_id):
    deadline = time.monotonic() + 60
    while (batch := client.messages.batches.retrieve(batch_id)).processing_status != "ended":
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


@check
def runs_a_batch(run):
    client = run.client()
    batch = client.messages.batches.create(requests=batch_of(3))
    assert batch.processing_status == "in_progress"
    done = ended(client, batch.id)
    assert done.request_counts.succeeded == 3
    assert done.results_url.startswith(TASK["base_url"] + "/"), f"results lead past the gateway: {done.results_url}"
    results = list(client.messages.batches.results(batch.id))
    assert sorted(result.custom_id for result in results) == ["nr-0", "nr-1", "nr-2"]
    assert all(text_of(result.result.message) for result in results)
    assert batch.id in [each.id for each in client.messages.batches.list(limit=2)]
    assert client.messages.batches.delete(batch.id).id == batch.id


@check
def cancels_a_batch(run):
    client = run.client()
    batch = client.messages.batches.create(requests=batch_of(2))
    assert client.messages.batches.cancel(batch.id).processing_status == "canceling"
    assert ended(client, batch.id).request_counts.canceled == 2


@check
def keeps_a_file(run):
    client, content = run.client(), bytes(range(256)) * 20_000
    file = client.files.upload(file=("notes.bin", io.BytesIO(content), "application/octet-stream"))
    assert file.size_bytes == len(content)
    assert file.id in [each.id for each in client.files.list()]
    assert client.files.retrieve_metadata(file.id).filename == "notes.bin"
    assert client.files.download(file.id).read() == content
    assert client.files.delete(file.id).id == file.id


@check
def raises_bad_request(run):
    with run.raises(anthropic.BadRequestError, 400):
        run.client().messages.create(**(ASK | {"max_tokens": -1}))
    assert "max_tokens" in str(run.error)


@check
def raises_bad_request_of_the_gateway_once(run):
    with run.raises(anthropic.BadRequestError, 400):
        run.client(max_retries=2).messages.create(**(ASK | {"model": 7}))
    assert run.error.response.headers["x-should-retry"] == "false"
    assert run.error.body["error"]["details"]["field"] == "model"
    assert run.error.body["error"]["details"]["trace_id"] == run.headers["traceparent"].split("-")[1]


@check
def raises_authentication_error_for_an_unknown_key_once(run):
    with run.raises(anthropic.AuthenticationError, 401):
        run.client(api_key="sk-nobody", max_retries=2).messages.create(**ASK)
    assert run.error.response.headers["x-should-retry"] == "false"


@check
def raises_authentication_error(run):
    with run.raises(anthropic.AuthenticationError, 401):
        run.client("fault=authentication").messages.create(**ASK)


@check
def raises_permission_denied(run):
    with run.raises(anthropic.PermissionDeniedError, 403):
        run.client("fault=permission").messages.create(**ASK)


@check
def raises_not_found(run):
    with run.raises(anthropic.NotFoundError, 404):
        run.client().messages.create(**(ASK | {"model": "claude-nobody"}))


@check
def raises_not_found_for_a_route_that_is_not_there(run):
    with run.raises(anthropic.NotFoundError, 404):
        run.client(max_retries=2).post("/v1/nothing", cast_to=object, body={})
    assert run.error.response.headers["x-should-retry"] == "false"


@check
def raises_rate_limit(run):
    with run.raises(anthropic.RateLimitError, 429):
        run.client(f"fault=rate_limit_requests;{FINAL}").messages.create(**ASK)
    assert float(run.error.response.headers["retry-after"]) > 0
    assert run.error.response.headers["anthropic-ratelimit-requests-remaining"] == "0"


@check
def raises_spend_limit_by_its_code(run):
    with run.raises(anthropic.EnforcedSpendLimitReachedError, 429):
        run.client(f"fault=spend;{FINAL}").messages.create(**ASK)
    assert run.error.error_code == "enforced_spend_limit_reached"


@check
def raises_overloaded(run):
    with run.raises(anthropic._exceptions.OverloadedError, 529):
        run.client(f"fault=overloaded;{FINAL}").messages.create(**ASK)


@check
def raises_internal_server_error(run):
    with run.raises(anthropic.InternalServerError, 500):
        run.client(f"fault=api_error;{FINAL}").messages.create(**ASK)


@check
def raises_request_too_large_of_the_provider(run):
    with run.raises(anthropic._exceptions.RequestTooLargeError, 413):
        run.client("fault=too_large").messages.create(**ASK)


@check
def raises_request_too_large_of_the_gateway(run):
    large = [{"role": "user", "content": "x" * ENOUGH}]
    with run.raises(anthropic._exceptions.RequestTooLargeError, 413):
        run.client().messages.create(**(ASK | {"messages": large}))


@check
def retries_an_overloaded_answer(run):
    schedule({"scenario": "fault=overloaded;retry_after=0.05", "nth": 1})
    try:
        assert text_of(run.saw(run.client(max_retries=2).messages.create(**ASK)))
    finally:
        schedule()


@check
def does_not_retry_when_told_not_to(run):
    with run.raises(anthropic._exceptions.OverloadedError, 529):
        run.client(f"fault=overloaded;{FINAL}", max_retries=2).messages.create(**ASK)


def broken_stream(run, scenario):
    """The error that ends a stream, after text has come."""
    seen = 0
    try:
        for event in run.client(scenario, max_retries=2).messages.create(**ASK, stream=True):
            seen += event.type == "content_block_delta"
    except anthropic.APIStatusError as error:
        assert seen > 0
        return error
    raise AssertionError("the stream ended as if nothing had happened")


@check
def raises_for_an_error_event_in_a_stream(run):
    error = broken_stream(run, "fault=error_after;after=3;chunks=9")
    assert error.body["error"]["type"] == "overloaded_error", error.body


@check
def raises_for_a_stream_that_is_cut_off(run):
    error = broken_stream(run, "fault=cut;after=3;chunks=9")
    assert error.body["error"]["details"]["source"] == "claude-proxy", error.body
    assert error.body["error"]["details"]["trace_id"] == run.headers["traceparent"].split("-")[1]


@check
def raises_for_a_stream_that_ends_between_two_events(run):
    error = broken_stream(run, "fault=cut_boundary;after=3;chunks=9")
    assert error.body["error"]["details"]["source"] == "claude-proxy", error.body


@check
def may_leave_a_stream_early(run):
    with run.client("gap_ms=25;chunks=400;output_tokens=1600").messages.create(
        **(ASK | {"max_tokens": 2000}), stream=True
    ) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                break


@check
def comes_in_with_a_bearer_token(run):
    assert text_of(run.saw(run.client(auth_token=TASK["key"], api_key=None).messages.create(**ASK)))


@check
def comes_in_with_x_api_key(run):
    headers = run.headers | {"x-api-key": TASK["key"], "authorization": anthropic.Omit()}
    client = run.client(default_headers=headers)
    assert text_of(run.saw(client.messages.create(**ASK)))


@check
def reaches_the_provider_as_it_was_sent(run):
    """Twice the same beta call, past the gateway and through it; the caller compares what arrived."""
    for each in ({"base_url": TASK["direct"]["url"], "api_key": TASK["direct"]["key"]}, {}):
        answer = run.client(**each).beta.messages.create(**ASK, betas=BETAS, extra_headers={"X-Team": "red, green"})
        run.detail.setdefault("same", []).append(answer._request_id)
    run.saw(answer)


def main():
    for name in TASK["traces"]:
        run = Run(name)
        try:
            CHECKS[name](run)
        except Exception:  # noqa: BLE001 every check reports, whatever happens
            answer = {"name": name, "ok": False, "detail": run.detail, "error": traceback.format_exc(limit=-6)}
        else:
            answer = {"name": name, "ok": True, "detail": run.detail}
        print(json.dumps(answer), flush=True)  # noqa: T201 the report


main()

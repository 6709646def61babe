# mypy: ignore-errors
"""What a user of OpenAI's Python SDK does, one check after the other; runs in that SDK's own environment."""

import asyncio

import openai
from reporting import TASK, check, main, raised

MODEL = "gpt-6.1-sol"
TURNS = [{"role": "user", "content": "Tell me about the river."}]
CHAT = {"model": MODEL, "messages": TURNS, "max_completion_tokens": 64}
RESPONSE = {"model": MODEL, "input": "Tell me about the river.", "max_output_tokens": 64}


def options(run, scenario=None, **more):
    headers = run.headers(scenario)
    given = {"base_url": TASK["base_url"] + "/openai/v1", "api_key": TASK["key"], "max_retries": 0}
    return given | {"default_headers": headers} | more


def client(run, scenario=None, **more):
    return openai.OpenAI(**options(run, scenario, **more))


def noted_chat(run, usage):
    given, output = usage.prompt_tokens_details, usage.completion_tokens_details
    run.used(usage.prompt_tokens, usage.completion_tokens, given.cached_tokens or 0, output.reasoning_tokens or 0)


def noted_response(run, usage):
    given, output = usage.input_tokens_details, usage.output_tokens_details
    run.used(usage.input_tokens, usage.output_tokens, given.cached_tokens or 0, output.reasoning_tokens or 0)


@check
def completes_a_chat(run):
    answer = client(run).chat.completions.create(**CHAT)
    assert answer.choices[0].message.content
    assert answer._request_id.startswith("req_")
    run.detail["request_id"] = answer._request_id
    noted_chat(run, answer.usage)


@check
def completes_a_chat_asynchronously(run):
    async def ask():
        async with openai.AsyncOpenAI(**options(run)) as asynchronous:
            return await asynchronous.chat.completions.create(**CHAT)

    noted_chat(run, asyncio.run(ask()).usage)


@check
def streams_a_chat_with_usage(run):
    stream = client(run).chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    noted_chat(run, chunks[-1].usage)


@check
def streams_a_chat_without_usage(run):
    chunks = list(client(run).chat.completions.create(**CHAT, stream=True))
    assert len(chunks) > 2
    assert {chunk.usage for chunk in chunks} == {None}


@check
def creates_a_response(run):
    answer = client(run, "thinking_tokens=20").responses.create(**RESPONSE)
    assert answer.output_text
    assert answer.usage.output_tokens_details.reasoning_tokens == 20
    noted_response(run, answer.usage)


@check
def streams_a_response(run):
    with client(run).responses.stream(model=MODEL, input=RESPONSE["input"]) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert "response.output_text.delta" in kinds
    noted_response(run, answer.usage)


@check
def streams_a_response_asynchronously(run):
    async def ask():
        async with openai.AsyncOpenAI(**options(run)) as asynchronous:
            return [event async for event in await asynchronous.responses.create(**RESPONSE, stream=True)]

    events = asyncio.run(ask())
    assert events[-1].type in ("response.completed", "response.incomplete")
    noted_response(run, events[-1].response.usage)


@check
def lists_models(run):
    assert MODEL in [model.id for model in client(run).models.list()]


@check
def gets_a_model(run):
    assert client(run).models.retrieve(MODEL).id == MODEL


def failing(run, scenario, kind, **more):
    return raised(kind, lambda: client(run, scenario, **more).chat.completions.create(**CHAT))


@check
def raises_rate_limit(run):
    error = failing(run, "fault=rate_limit_requests", openai.RateLimitError)
    assert error.code == "rate_limit_exceeded"


@check
def raises_insufficient_quota(run):
    assert failing(run, "fault=spend", openai.RateLimitError).code == "insufficient_quota"


@check
def raises_overloaded(run):
    assert failing(run, "fault=overloaded", openai.InternalServerError).status_code == 503


@check
def raises_bad_request_of_the_gateway(run):
    ask = client(run).chat.completions.create
    error = raised(openai.BadRequestError, lambda: ask(model=7, messages=TURNS))
    assert (error.param, error.body["details"]["source"]) == ("model", "claude-proxy")


@check
def raises_for_an_unknown_key(run):
    error = failing(run, None, openai.AuthenticationError, api_key="sk-nobody")
    assert error.code == "invalid_api_key"


def broken(run, scenario, create, **asked):
    ask = client(run, scenario).chat.completions.create if create == "chat" else client(run, scenario).responses.create
    return raised(openai.APIError, lambda: list(ask(**asked, stream=True)))


@check
def raises_for_a_chat_stream_that_is_cut_off(run):
    error = broken(run, "fault=cut_boundary;after=3;chunks=9", "chat", **CHAT)
    assert error.body["details"]["source"] == "claude-proxy"


@check
def raises_for_a_response_stream_that_is_cut_off(run):
    error = broken(run, "fault=cut_boundary;after=3;chunks=9", "responses", **RESPONSE)
    assert error.body["details"]["source"] == "claude-proxy"


@check
def raises_for_an_error_in_a_stream(run):
    broken(run, "fault=error_after;after=3;chunks=9", "chat", **CHAT)


main()

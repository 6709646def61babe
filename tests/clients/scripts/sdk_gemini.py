# mypy: ignore-errors
"""What a user of Google's Gen AI SDK does, one check after the other; runs in that SDK's own environment."""

import asyncio

from google import genai
from google.genai import errors, types
from reporting import TASK, check, main, raised

MODEL = "gemini-3.8-flash"
PROMPT = "Tell me about the river."
BRIEF = types.GenerateContentConfig(max_output_tokens=64, system_instruction="Be brief")


def client(run, scenario=None, key=None, **options):
    headers = run.headers(scenario)
    http = types.HttpOptions(base_url=TASK["base_url"] + "/gemini", headers=headers, **options)
    run.client = genai.Client(api_key=key or TASK["key"], http_options=http)  # it closes itself when nobody holds it
    return run.client


def noted(run, usage):
    assert usage.total_token_count > 0
    thoughts = usage.thoughts_token_count or 0
    given = usage.prompt_token_count + (usage.tool_use_prompt_token_count or 0)
    output = (usage.candidates_token_count or 0) + thoughts
    run.used(given, output, usage.cached_content_token_count or 0, thoughts)


@check
def generates(run):
    answer = client(run).models.generate_content(model=MODEL, contents=PROMPT, config=BRIEF)
    assert answer.text
    assert answer.candidates[0].finish_reason is not None
    noted(run, answer.usage_metadata)


@check
def generates_asynchronously(run):
    async def ask():
        return await client(run).aio.models.generate_content(model=MODEL, contents=PROMPT)

    answer = asyncio.run(ask())
    assert answer.text
    noted(run, answer.usage_metadata)


@check
def generates_with_the_older_version(run):
    answer = client(run, api_version="v1beta").models.generate_content(model=MODEL, contents=PROMPT)
    noted(run, answer.usage_metadata)


@check
def thinks(run):
    answer = client(run, "thinking_tokens=40").models.generate_content(model=MODEL, contents=PROMPT)
    assert answer.usage_metadata.thoughts_token_count == 40
    noted(run, answer.usage_metadata)


@check
def streams(run):
    chunks = list(client(run).models.generate_content_stream(model=MODEL, contents=PROMPT))
    assert len(chunks) > 2
    assert "".join(chunk.text or "" for chunk in chunks)
    noted(run, chunks[-1].usage_metadata)


@check
def streams_asynchronously(run):
    async def ask():
        stream = await client(run).aio.models.generate_content_stream(model=MODEL, contents=PROMPT)
        return [chunk async for chunk in stream]

    chunks = asyncio.run(ask())
    assert len(chunks) > 2
    noted(run, chunks[-1].usage_metadata)


@check
def counts_tokens(run):
    assert client(run).models.count_tokens(model=MODEL, contents=PROMPT).total_tokens > 0


@check
def lists_models(run):
    assert any(MODEL in model.name for model in client(run).models.list())


@check
def gets_a_model(run):
    assert MODEL in client(run).models.get(model=MODEL).name


def failing(run, scenario, **options):
    ask = client(run, scenario, **options).models.generate_content
    return raised(errors.APIError, lambda: ask(model=MODEL, contents=PROMPT))


@check
def raises_rate_limit(run):
    error = failing(run, "fault=rate_limit_requests")
    assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    assert "RetryInfo" in str(error.details)


@check
def raises_overloaded(run):
    error = failing(run, "fault=overloaded")
    assert (error.code, error.status) == (503, "UNAVAILABLE")


@check
def raises_for_an_unknown_key(run):
    error = failing(run, None, key="sk-nobody")
    assert (error.code, error.status) == (401, "UNAUTHENTICATED")
    assert "claude-proxy" in str(error.details)


@check
def raises_for_a_stream_that_is_cut_off(run):
    ask = client(run, "fault=cut_boundary;after=3;chunks=9").models.generate_content_stream
    error = raised(errors.APIError, lambda: list(ask(model=MODEL, contents=PROMPT)))
    assert "claude-proxy" in str(error.details)


@check
def raises_for_an_error_in_a_stream(run):
    ask = client(run, "fault=error_after;after=3;chunks=9").models.generate_content_stream
    error = raised(errors.APIError, lambda: list(ask(model=MODEL, contents=PROMPT)))
    assert error.status == "UNAVAILABLE"


main()

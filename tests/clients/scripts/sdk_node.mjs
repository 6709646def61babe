// What a user of the Anthropic TypeScript SDK does, one check after the other. Names and order are those of
// sdk_python.py; task on stdin, one JSON line per check on stdout (see tests/clients/sdk.py).

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import Anthropic, { toFile } from "@anthropic-ai/sdk";

const TASK = JSON.parse(readFileSync(0, "utf8"));
const MODEL = "claude-opus-5-5";
const PROMPT = [{ role: "user", content: "Tell me about the river." }];
const ASK = { model: MODEL, max_tokens: 256, messages: PROMPT };
const WEATHER = {
  name: "get_weather",
  description: "The weather of a city.",
  input_schema: {
    type: "object",
    properties: { city: { type: "string" }, days: { type: "integer" } },
    required: ["city", "days"],
  },
};
const BETAS = ["context-1m-2025-08-07", "fine-grained-tool-streaming-2025-05-14"];
const FINAL = "should_retry=false"; // so that neither the gateway nor the SDK tries again
const ENOUGH = 33 * 1024 * 1024;

/** One check's SDK client and what is handed back about it. */
class Run {
  constructor(name) {
    this.trace = TASK.traces[name];
    this.detail = { request_ids: [], usages: [] };
  }

  client(scenario, options = {}) {
    const defaultHeaders = { traceparent: `00-${this.trace}-00f067aa0ba902b7-01`, ...options.headers };
    if (scenario) defaultHeaders["x-simulator-scenario"] = scenario;
    delete options.headers;
    return new Anthropic({ baseURL: TASK.base_url, apiKey: TASK.key, maxRetries: 0, defaultHeaders, ...options });
  }

  /** Note usage and request id of a message that came whole. */
  saw(message) {
    const usage = message.usage;
    this.detail.usages.push({
      input: usage.input_tokens,
      output: usage.output_tokens,
      cache_read: usage.cache_read_input_tokens ?? 0,
      cache_write: usage.cache_creation_input_tokens ?? 0,
    });
    if (message._request_id) this.detail.request_ids.push(message._request_id);
    return message;
  }

  /** `ask` must throw exactly that class of the SDK, with a request id, a type and a message. */
  async throws(kind, status, ask) {
    const error = await ask().then(
      () => assert.fail(`${kind.name} was not thrown`),
      (thrown) => thrown,
    );
    assert.equal(error.constructor, kind, `${error.constructor.name} instead of ${kind.name}: ${error}`);
    assert.equal(error.status, status);
    assert.ok(error.requestID, "the SDK sees no request id");
    assert.equal(error.error.type, "error");
    assert.ok(error.error.error.message);
    assert.equal(error.error.request_id, error.requestID);
    this.detail.request_ids.push(error.requestID);
    return error;
  }
}

const textOf = (message) => message.content.map((block) => (block.type === "text" ? block.text : "")).join("");

async function schedule(...rules) {
  const url = `${TASK.direct.url}/_simulator/schedule`;
  const answer = await fetch(url, { method: "POST", body: JSON.stringify(rules) });
  assert.ok(answer.ok);
  await answer.text();
}

const batchOf = (number) =>
  Array.from({ length: number }, (_, i) => ({ custom_id: `nr-${i}`, params: ASK }));

async function ended(client, id) {
  for (let tries = 0; tries < 1200; tries++) {
    const batch = await client.messages.batches.retrieve(id);
    if (batch.processing_status === "ended") return batch;
    await sleep(50);
  }
  assert.fail(`batch ${id} does not end`);
}

async function all(iterable) {
  const items = [];
  for await (const item of iterable) items.push(item);
  return items;
}

/** The error that ends a stream, after text has come. */
async function brokenStream(run, scenario) {
  let seen = 0;
  try {
    const stream = await run.client(scenario, { maxRetries: 2 }).messages.create({ ...ASK, stream: true });
    for await (const event of stream) seen += event.type === "content_block_delta";
  } catch (error) {
    assert.ok(error instanceof Anthropic.APIError, `${error}`);
    assert.ok(seen > 0);
    return error;
  }
  assert.fail("the stream ended as if nothing had happened");
}

const CHECKS = {
  async creates_a_message(run) {
    const message = run.saw(await run.client().messages.create(ASK));
    assert.ok(textOf(message));
    assert.deepEqual([message.role, message.stop_reason, message.model], ["assistant", "end_turn", MODEL]);
  },

  async streams_with_the_helper(run) {
    const stream = run.client("ping_every=3").messages.stream(ASK);
    const kinds = (await all(stream)).map((event) => event.type);
    const final = run.saw(await stream.finalMessage());
    assert.equal(kinds[0], "message_start");
    assert.equal(kinds.at(-1), "message_stop");
    assert.equal(textOf(final), await stream.finalText());
  },

  async streams_text_with_the_helper(run) {
    const pieces = [];
    const stream = run.client().messages.stream(ASK).on("text", (piece) => pieces.push(piece));
    const final = run.saw(await stream.finalMessage());
    assert.ok(pieces.length > 2);
    assert.equal(pieces.join(""), textOf(final));
  },

  async streams_raw_events(run) {
    const scenario = "message_deltas=3;unknown_events;comments;crlf;split=7";
    const events = await all(await run.client(scenario).messages.create({ ...ASK, stream: true }));
    const usage = { ...events.find((event) => event.type === "message_start").message.usage };
    for (const event of events) if (event.type === "message_delta") Object.assign(usage, event.usage);
    assert.equal(events.at(-1).type, "message_stop");
    assert.ok(events.some((event) => event.delta?.type === "text_delta" && event.delta.text));
    run.detail.usages.push({ input: usage.input_tokens, output: usage.output_tokens });
  },

  async reuses_a_cached_prompt(run) {
    const system = [
      { type: "text", text: `${TASK.client} `.repeat(3000), cache_control: { type: "ephemeral" } },
    ];
    const first = run.saw(await run.client().messages.create({ ...ASK, system }));
    const second = run.saw(await run.client().messages.create({ ...ASK, system }));
    assert.ok(first.usage.cache_creation_input_tokens > 1000);
    assert.equal(second.usage.cache_read_input_tokens, first.usage.cache_creation_input_tokens);
  },

  async uses_a_tool(run) {
    const asked = run.saw(await run.client("tool=get_weather").messages.create({ ...ASK, tools: [WEATHER] }));
    assert.equal(asked.stop_reason, "tool_use");
    const call = asked.content.find((block) => block.type === "tool_use");
    assert.equal(typeof call.input.city, "string");
    const result = { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "rain" }] };
    const messages = [...PROMPT, { role: "assistant", content: asked.content }, result];
    const answer = run.saw(await run.client().messages.create({ ...ASK, messages, tools: [WEATHER] }));
    assert.equal(answer.stop_reason, "end_turn");
  },

  async streams_a_tool_call(run) {
    const pieces = [];
    const stream = run.client("tool=get_weather;chunks=5").messages.stream({ ...ASK, tools: [WEATHER] });
    stream.on("inputJson", (piece) => pieces.push(piece));
    const call = run.saw(await stream.finalMessage()).content.find((block) => block.type === "tool_use");
    assert.deepEqual(JSON.parse(pieces.join("")), call.input);
    assert.equal(call.input.days, 7);
  },

  async thinks(run) {
    const message = run.saw(await run.client().messages.create({ ...ASK, thinking: { type: "adaptive" } }));
    assert.deepEqual(message.content.map((block) => block.type), ["thinking", "text"]);
    assert.ok(message.content[0].signature);
  },

  async streams_thinking(run) {
    const pieces = [];
    const stream = run.client().messages.stream({ ...ASK, thinking: { type: "adaptive" } });
    stream.on("thinking", (piece) => pieces.push(piece));
    const thought = run.saw(await stream.finalMessage()).content[0];
    assert.ok(thought.thinking);
    assert.equal(thought.thinking, pieces.join(""));
    assert.ok(thought.signature);
  },

  async counts_tokens(run) {
    const count = await run.client().messages.countTokens({ model: MODEL, messages: PROMPT });
    assert.ok(count.input_tokens > 0);
  },

  async lists_models_page_by_page(run) {
    const client = run.client();
    const first = await client.models.list({ limit: 5 });
    assert.ok(first.has_more);
    const ids = (await all(first)).map((model) => model.id);
    assert.ok(ids.length > 10);
    assert.equal(new Set(ids).size, ids.length);
    assert.ok(ids.includes(MODEL));
    assert.deepEqual(ids, (await client.models.list({ limit: 1000 })).data.map((model) => model.id));
  },

  async retrieves_a_model(run) {
    assert.equal((await run.client().models.retrieve(MODEL)).id, MODEL);
  },

  async runs_a_batch(run) {
    const client = run.client();
    const batch = await client.messages.batches.create({ requests: batchOf(3) });
    assert.equal(batch.processing_status, "in_progress");
    const done = await ended(client, batch.id);
    assert.equal(done.request_counts.succeeded, 3);
    assert.ok(done.results_url.startsWith(`${TASK.base_url}/`), `results lead past the gateway: ${done.results_url}`);
    const results = await all(await client.messages.batches.results(batch.id));
    assert.deepEqual(results.map((result) => result.custom_id).sort(), ["nr-0", "nr-1", "nr-2"]);
    assert.ok(results.every((result) => textOf(result.result.message)));
    const listed = await all(await client.messages.batches.list({ limit: 2 }));
    assert.ok(listed.some((each) => each.id === batch.id));
    assert.equal((await client.messages.batches.delete(batch.id)).id, batch.id);
  },

  async cancels_a_batch(run) {
    const client = run.client();
    const batch = await client.messages.batches.create({ requests: batchOf(2) });
    assert.equal((await client.messages.batches.cancel(batch.id)).processing_status, "canceling");
    assert.equal((await ended(client, batch.id)).request_counts.canceled, 2);
  },

  async keeps_a_file(run) {
    const client = run.client();
    const content = Buffer.alloc(5_120_000, Buffer.from(Array.from({ length: 256 }, (_, i) => i)));
    const upload = await toFile(content, "notes.bin", { type: "application/octet-stream" });
    const file = await client.files.upload({ file: upload });
    assert.equal(file.size_bytes, content.length);
    assert.ok((await all(await client.files.list())).some((each) => each.id === file.id));
    assert.equal((await client.files.retrieveMetadata(file.id)).filename, "notes.bin");
    const back = Buffer.from(await (await client.files.download(file.id)).arrayBuffer());
    assert.ok(back.equals(content));
    assert.equal((await client.files.delete(file.id)).id, file.id);
  },

  async raises_bad_request(run) {
    const ask = () => run.client().messages.create({ ...ASK, max_tokens: -1 });
    const error = await run.throws(Anthropic.BadRequestError, 400, ask);
    assert.ok(error.message.includes("max_tokens"));
  },

  async raises_bad_request_of_the_gateway_once(run) {
    const ask = () => run.client("", { maxRetries: 2 }).messages.create({ ...ASK, model: 7 });
    const error = await run.throws(Anthropic.BadRequestError, 400, ask);
    assert.equal(error.headers.get("x-should-retry"), "false");
    assert.equal(error.details.field, "model");
    assert.equal(error.details.trace_id, run.trace);
  },

  async raises_authentication_error_for_an_unknown_key_once(run) {
    const ask = () => run.client("", { apiKey: "sk-nobody", maxRetries: 2 }).messages.create(ASK);
    const error = await run.throws(Anthropic.AuthenticationError, 401, ask);
    assert.equal(error.headers.get("x-should-retry"), "false");
  },

  async raises_authentication_error(run) {
    const ask = () => run.client("fault=authentication").messages.create(ASK);
    await run.throws(Anthropic.AuthenticationError, 401, ask);
  },

  async raises_permission_denied(run) {
    const ask = () => run.client("fault=permission").messages.create(ASK);
    await run.throws(Anthropic.PermissionDeniedError, 403, ask);
  },

  async raises_not_found(run) {
    const ask = () => run.client().messages.create({ ...ASK, model: "claude-nobody" });
    await run.throws(Anthropic.NotFoundError, 404, ask);
  },

  async raises_not_found_for_a_route_that_is_not_there(run) {
    const ask = () => run.client("", { maxRetries: 2 }).post("/v1/nothing", { body: {} });
    const error = await run.throws(Anthropic.NotFoundError, 404, ask);
    assert.equal(error.headers.get("x-should-retry"), "false");
  },

  async raises_rate_limit(run) {
    const ask = () => run.client(`fault=rate_limit_requests;${FINAL}`).messages.create(ASK);
    const error = await run.throws(Anthropic.RateLimitError, 429, ask);
    assert.ok(Number(error.headers.get("retry-after")) > 0);
    assert.equal(error.headers.get("anthropic-ratelimit-requests-remaining"), "0");
  },

  async raises_spend_limit_by_its_code(run) {
    const ask = () => run.client(`fault=spend;${FINAL}`).messages.create(ASK);
    const error = await run.throws(Anthropic.EnforcedSpendLimitReachedError, 429, ask);
    assert.equal(error.errorCode, "enforced_spend_limit_reached");
  },

  async raises_overloaded(run) {
    const ask = () => run.client(`fault=overloaded;${FINAL}`).messages.create(ASK);
    await run.throws(Anthropic.OverloadedError, 529, ask);
  },

  async raises_internal_server_error(run) {
    const ask = () => run.client(`fault=api_error;${FINAL}`).messages.create(ASK);
    await run.throws(Anthropic.InternalServerError, 500, ask);
  },

  async raises_request_too_large_of_the_provider(run) {
    const ask = () => run.client("fault=too_large").messages.create(ASK);
    await run.throws(Anthropic.ContentTooLargeError, 413, ask);
  },

  async raises_request_too_large_of_the_gateway(run) {
    const messages = [{ role: "user", content: "x".repeat(ENOUGH) }];
    const ask = () => run.client().messages.create({ ...ASK, messages });
    await run.throws(Anthropic.ContentTooLargeError, 413, ask);
  },

  async retries_an_overloaded_answer(run) {
    await schedule({ scenario: "fault=overloaded;retry_after=0.05", nth: 1 });
    try {
      assert.ok(textOf(run.saw(await run.client("", { maxRetries: 2 }).messages.create(ASK))));
    } finally {
      await schedule();
    }
  },

  async does_not_retry_when_told_not_to(run) {
    const ask = () => run.client(`fault=overloaded;${FINAL}`, { maxRetries: 2 }).messages.create(ASK);
    await run.throws(Anthropic.OverloadedError, 529, ask);
  },

  async raises_for_an_error_event_in_a_stream(run) {
    const error = await brokenStream(run, "fault=error_after;after=3;chunks=9");
    assert.equal(error.error.error.type, "overloaded_error");
  },

  async raises_for_a_stream_that_is_cut_off(run) {
    const error = await brokenStream(run, "fault=cut;after=3;chunks=9");
    assert.equal(error.error.error.details.source, "claude-proxy");
    assert.equal(error.error.error.details.trace_id, run.trace);
  },

  async raises_for_a_stream_that_ends_between_two_events(run) {
    const error = await brokenStream(run, "fault=cut_boundary;after=3;chunks=9");
    assert.equal(error.error.error.details.source, "claude-proxy");
  },

  async may_leave_a_stream_early(run) {
    const scenario = "gap_ms=25;chunks=400;output_tokens=1600";
    const stream = await run.client(scenario).messages.create({ ...ASK, max_tokens: 2000, stream: true });
    for await (const event of stream) if (event.type === "content_block_delta") break;
  },

  async comes_in_with_a_bearer_token(run) {
    const client = run.client("", { authToken: TASK.key, apiKey: null });
    assert.ok(textOf(run.saw(await client.messages.create(ASK))));
  },

  async comes_in_with_x_api_key(run) {
    const client = run.client("", { headers: { "x-api-key": TASK.key, authorization: null } });
    assert.ok(textOf(run.saw(await client.messages.create(ASK))));
  },

  /** Twice the same beta call, past the gateway and through it; the caller compares what arrived. */
  async reaches_the_provider_as_it_was_sent(run) {
    run.detail.same = [];
    let answer;
    for (const where of [{ baseURL: TASK.direct.url, apiKey: TASK.direct.key }, {}]) {
      const options = { headers: { "X-Team": "red, green" } };
      answer = await run.client("", where).beta.messages.create({ ...ASK, betas: BETAS }, options);
      run.detail.same.push(answer._request_id);
    }
    run.saw(answer);
  },
};

for (const name of Object.keys(TASK.traces)) {
  const run = new Run(name);
  let answer = { name, ok: true, detail: run.detail };
  try {
    await CHECKS[name](run);
  } catch (error) {
    answer = { name, ok: false, detail: run.detail, error: `${error.stack}` };
  }
  console.log(JSON.stringify(answer));
}
process.exit(0); // connections that are kept alive would hold it open

"""What `claude-proxy simulate --help` says about the APIs, scenarios, schedules and the truth."""

EPILOG = """\
APIs
  Claude  /v1/messages, count_tokens, batches, models, files     x-api-key or Authorization: Bearer
          /v1/organizations/usage_report/messages and /cost_report, computed from the truth: a key that begins with
          sk-ant-admin, which is good for nothing else
  Gemini  /gemini/v1 and /gemini/v1beta: POST models/NAME:generateContent, :streamGenerateContent (server-sent events
          with ?alt=sse, else a JSON array), :countTokens; GET models        x-goog-api-key or ?key=
  OpenAI  /openai/v1: POST chat/completions, responses; GET models           Authorization: Bearer
  Gemini's and OpenAI's POSTs answer without their prefix too; GET /v1/models is Claude's. All share the port, the
  scenarios, the schedule and the truth.

scenarios
  A request says how it wants to be answered in the header x-simulator-scenario:
    x-simulator-scenario: fault=stall;after=3;gap_ms=20;output_tokens=200
  Parts are separated by ";", a flag needs no value, an unknown part is a 400 that names it.

  fault=NAME       an answer instead of the usual one, here as Claude gives it:
    rate_limit_requests, rate_limit_input_tokens, rate_limit_output_tokens
                   429 with retry-after and that limit's remaining at 0
    acceleration   429, error_code ramp_limit_exceeded, with retry-after
    spend          429, error_code enforced_spend_limit_reached, without retry-after
    overloaded 529, api_error 500, timeout 504, unavailable 503, invalid_request 400, authentication 401,
    billing 402, permission 403, not_found 404, conflict 409, too_large 413
    hang           nothing at all, until the client leaves
    reset          TCP reset before the headers
  Where Gemini differs, every error in Google's shape:
    rate_limit_*   429 RESOURCE_EXHAUSTED with QuotaFailure and RetryInfo (output is not limited: as for input)
    daily_quota    the same for the quota of a day, RetryInfo in hours
    acceleration, spend     429 RESOURCE_EXHAUSTED without details
    overloaded 503 UNAVAILABLE, authentication and too_large 400, billing 400 FAILED_PRECONDITION
  Where OpenAI differs:
    rate_limit_*   429 rate_limit_exceeded with retry-after (input and output are one limit, tokens)
    daily_quota    the same for requests per day, retry-after in hours
    spend          429 insufficient_quota, without retry-after        billing  429 billing_not_active
    overloaded     503 server_is_overloaded                           acceleration  503 slow_down
  fault=NAME       a break in the body, in a stream after `after` content deltas, else in its middle:
    stall          silence, for ever or for stall_ms
    cut            connection closed within an event
    cut_boundary   connection closed between two events
    reset_mid      TCP reset
    malformed      an event (or body) that is not JSON; the stream then goes on
    garbage        200 with bytes that are neither events nor JSON
    error_first    an error in the stream as the first event; without stream its HTTP status
    error_after    an error in the stream after `after` content deltas; without stream its HTTP status
                   (Gemini, chat: an error object as an event; responses: `error`, later `response.failed` too)
  after=N          content deltas before the break (default: half of them)
  error=KIND       overloaded_error (default) or api_error, of error_first and error_after
  retry_after=S    seconds in retry-after (RetryInfo)   should_retry=true|false  x-should-retry header
  ttfb_ms=MS       wait before the headers       first_ms=MS   wait between headers and first content delta
  gap_ms=MS        wait between content deltas   stall_ms=MS   length of a stall
  chunks=N         content deltas per block      output_tokens=N  length of the answer
  thinking_tokens=N  thinking (reasoning), asked for or not; part of output_tokens
  stop=REASON      why it ends, in Claude's words: Gemini and OpenAI translate it
  tool=NAME        call that tool (auto: the first)   seed=N   another answer to the same request
  ping_every=N     a ping before every Nth delta      message_deltas=N  several message_delta events (both Claude)
  split=N          write the stream N bytes at a time
  flags            crlf, comments, unknown_events (streams); gzip (not streamed); cookie (set-cookie)

schedule
  A JSON list of rules, from --schedule or POST /_simulator/schedule, for requests without the header; the first
  rule that holds wins. All conditions but scenario may be left out, path is /v1/messages unless given; one that ends
  in * stands for all that begin so:
    [{"scenario": "fault=overloaded", "every": 10}, {"scenario": "fault=cut", "nth": 3},
     {"scenario": "fault=hang", "probability": 0.01, "seed": 7, "between": [60, 120], "path": "/openai/*"}]

truth
  GET /_simulator/counts     requests by status, streams by ending, tokens billed by provider (anthropic, gemini,
                             openai), key hash, model and kind, and every call by itself (?calls=0 leaves those out).
                             The kinds of input do not overlap, whatever the API's own usage does; reasoning is part
                             of the output. A stream is billed for what was written; nothing is billed for a fault
                             before the headers, error_first or garbage.
  GET /_simulator/requests   what came in: method, path, query, headers in order, SHA-256 and length of the body
  POST /_simulator/reset     forget all of that, refill the limits, empty the prompt caches, restart the schedule
"""

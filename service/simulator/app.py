"""The simulator as an aiohttp application, and how to serve it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import msgspec
from aiohttp import web

from service.simulator import admin, errors, messages, models
from service.simulator.batches import Batches
from service.simulator.breaking import before_headers, deliver
from service.simulator.call import Call, Simulator
from service.simulator.config import Clock, Config, SystemClock
from service.simulator.errors import ApiError, not_found
from service.simulator.face import CLAUDE, Face
from service.simulator.faults import Schedule, decode_rules
from service.simulator.files import Files
from service.simulator.gemini import content
from service.simulator.gemini.face import GEMINI
from service.simulator.openai import chat, responses
from service.simulator.openai.face import OPENAI

Handler = Callable[[Call], Awaitable[web.StreamResponse]]
_MB = 1 << 20
_MESSAGES_LIMIT, _BATCHES_LIMIT = 32 * _MB, 256 * _MB  # Errors page, request size limits
_BACKLOG = 4096
_LONGEST_HEADER = 65_536


def create_app(config: Config, *, clock: Clock | None = None) -> web.Application:
    """The whole API under /v1 and the truth under /_simulator. Serve it with `serve`, or a client that leaves goes
    unnoticed and compressed bodies arrive unpacked."""
    sim = Simulator(config, clock or SystemClock())
    app = web.Application(client_max_size=_BATCHES_LIMIT)
    route = app.router.add_route
    batches, files = Batches(sim), Files()
    app.on_cleanup.extend((batches.close, files.close))
    for method, path, handler, limit in _routes(batches, files):
        route(method, path, _api(sim, CLAUDE, handler, limit))
    for face, foreign in _foreign_routes():
        for method, path, handler in foreign:
            route(method, path, _api(sim, face, handler, _MESSAGES_LIMIT))
    route("GET", "/_simulator/counts", _truth(sim, _counts))
    route("GET", "/_simulator/requests", _truth(sim, _requests))
    route("POST", "/_simulator/reset", _truth(sim, _reset))
    route("POST", "/_simulator/schedule", _truth(sim, _schedule))
    route("*", "/{anything:.*}", _api(sim, CLAUDE, _nothing_here, _MESSAGES_LIMIT))
    return app


async def serve(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Start serving; returns the runner, to be cleaned up, and the port, which matters when `port` is 0."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,
        max_line_size=_LONGEST_HEADER,
        max_field_size=_LONGEST_HEADER,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
    return runner, int(runner.addresses[0][1])


def _api(
    sim: Simulator, face: Face, handler: Handler, limit: int
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The way of every API request: key, scenario, body, fault, answer, truth."""

    async def answer(request: web.Request) -> web.StreamResponse:
        call = Call(sim, request, face)
        try:
            try:
                response = await _respond(call, handler, limit)
            except ApiError as error:
                response = call.refuse(error)
            if isinstance(response, web.Response):
                call.line.first_byte = sim.clock.time()
                return await deliver(call, response)
            return response
        except (asyncio.CancelledError, ConnectionResetError):
            call.close("aborted")
            raise
        finally:
            call.close()

    return answer


async def _respond(call: Call, handler: Handler, limit: int) -> web.StreamResponse:
    call.authenticate()
    call.choose_scenario()
    if limit:
        await call.read_body(limit)
    if handler not in _OWN_PACE:
        await before_headers(call, 0.0)
    return await handler(call)


async def _list_models(call: Call) -> web.StreamResponse:
    return call.answer(models.page([models.describe(model) for model in models.MODELS], dict(call.request.query)))


async def _get_model(call: Call) -> web.StreamResponse:
    return call.answer(models.describe(models.find(call.request.match_info["id"])))


async def _nothing_here(call: Call) -> web.StreamResponse:
    raise not_found(f"Not found: {call.request.method} {call.request.path}")


# They name the model first, then take their time.
_OWN_PACE: tuple[Handler, ...] = (messages.create, messages.count, content.act, chat.create, responses.create)


def _routes(batches: Batches, files: Files) -> tuple[tuple[str, str, Handler, int], ...]:
    """Method, path, handler and the largest body; 0 for a body that the handler reads by itself."""
    one_batch, one_file = "/v1/messages/batches/{id}", "/v1/files/{id}"
    return (
        ("POST", "/v1/messages", messages.create, _MESSAGES_LIMIT),
        ("POST", "/v1/messages/count_tokens", messages.count, _MESSAGES_LIMIT),
        ("POST", "/v1/messages/batches", batches.create, _BATCHES_LIMIT),
        ("GET", "/v1/messages/batches", batches.list, _MB),
        ("GET", one_batch, batches.retrieve, _MB),
        ("DELETE", one_batch, batches.delete, _MB),
        ("POST", f"{one_batch}/cancel", batches.cancel, _MB),
        ("GET", f"{one_batch}/results", batches.results, _MB),
        ("GET", "/v1/models", _list_models, _MB),
        ("GET", "/v1/models/{id}", _get_model, _MB),
        ("GET", "/v1/organizations/usage_report/messages", admin.usage, _MB),
        ("GET", "/v1/organizations/cost_report", admin.cost, _MB),
        ("POST", "/v1/files", files.upload, 0),
        ("GET", "/v1/files", files.list, _MB),
        ("GET", one_file, files.retrieve, _MB),
        ("DELETE", one_file, files.delete, _MB),
        ("GET", f"{one_file}/content", files.content, _MB),
    )


def _foreign_routes() -> Iterator[tuple[Face, list[tuple[str, str, Handler]]]]:
    """The other APIs: all of each under its own prefix, and without it what Claude's API has not."""
    act, target = content.act, "{target:[^/]+:[^/:]+}"
    for base in ("/gemini/v1", "/gemini/v1beta", "/v1beta", "/v1"):
        yield GEMINI, [("POST", f"{base}/models/{target}", act)]
    for base in ("/gemini/v1", "/gemini/v1beta", "/v1beta"):
        listing = ("GET", f"{base}/models", content.list_models)
        yield GEMINI, [listing, ("GET", f"{base}/models/{{target}}", content.get_model)]
    for base in ("/openai/v1", "/v1"):
        yield (
            OPENAI,
            [("POST", f"{base}/chat/completions", chat.create), ("POST", f"{base}/responses", responses.create)],
        )
    models_of_openai = "/openai/v1/models"
    yield OPENAI, [("GET", models_of_openai, chat.list_models), ("GET", models_of_openai + "/{id}", chat.get_model)]
    yield OPENAI, [("*", "/openai/{anything:.*}", _nothing_here)]
    yield GEMINI, [("*", "/gemini/{anything:.*}", _nothing_here), ("*", "/v1beta/{anything:.*}", _nothing_here)]


def _truth(
    sim: Simulator, handler: Callable[[Simulator, web.Request], Awaitable[object]]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        try:
            return web.Response(body=msgspec.json.encode(await handler(sim, request)), content_type="application/json")
        except ApiError as error:
            return web.Response(body=errors.body(error, ""), status=error.status, content_type="application/json")

    return answer


async def _counts(sim: Simulator, request: web.Request) -> object:
    return sim.truth.counts(with_calls=request.query.get("calls") != "0")


async def _requests(sim: Simulator, _: web.Request) -> object:
    return [recorded.shown() for recorded in sim.truth.requests]


async def _reset(sim: Simulator, _: web.Request) -> object:
    sim.reset()
    return {}


async def _schedule(sim: Simulator, request: web.Request) -> object:
    rules = decode_rules(await request.read())
    sim.schedule = Schedule(rules, sim.clock.time())
    return {"rules": len(rules)}

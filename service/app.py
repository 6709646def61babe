"""The composition root: everything is made here and handed to what needs it.

bridge or WSGI server -> instrumentation (SERVER span) -> exchange opened -> gate -> view -> pipeline -> closing
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import service
from observability import catalog
from observability.exposition import Exposition, Place
from observability.lag import LagMonitor
from observability.scrub import without_keys
from observability.start import Telemetry, start
from observability.tracing import Options
from service.account.bookkeeping import Bookkeeping
from service.account.closing import Closing
from service.account.pauses import Pauses
from service.allowances import Allowance, Allowances
from service.batching import Batching
from service.caching import Caching
from service.capacity import Capacity
from service.capturing import Capturing
from service.pacer.clients import ClientLimits
from service.pacer.pacing import Pacer
from service.pacer.retries import RetryBudget
from service.pacer.shared import shared_state
from service.pipeline import Pipeline
from service.policy.limits import Limits
from service.policy.retry import Retries
from service.settings import Settings, Upstream
from service.store.answers import Answers
from service.store.shared import SharedState
from service.tries import Plan
from service.upstream.anthropic import Anthropic
from service.upstream.client import Client, Clients
from service.upstream.provider import Provider
from service.upstream.providers import PROVIDERS, models_of
from service.upstream.transport import Transport
from service.web import aggregate, generate, hooks, native, ops, routes
from service.web.ask import Asker
from service.web.auth import Gate
from service.web.flask_loop import LoopFlask

ROUTES = routes.RULES | {*generate.RULES, *aggregate.RULES}
FLUSH_SECONDS = 1.0
"""For the last spans and log lines, inside the grace that the worker keeps for it."""
LEDGER_SECONDS = 0.5
"""For the last rows; what is not in the ledger by then, a successor takes from the journal."""


@dataclass(frozen=True, slots=True)
class Host:
    """What the workers of a host share, and which of them this one is."""

    state: SharedState
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Gateway:
    """The made application and what must be stopped with it."""

    app: LoopFlask
    telemetry: Telemetry
    client: Clients
    exposition: Exposition
    lag: LagMonitor
    keeping: Bookkeeping
    allowances: Allowances

    async def start(self, place: Place) -> None:
        """Find the place among the workers of this host, and watch the loop."""
        await self.exposition.start(place)
        loop = asyncio.get_running_loop()
        spent, restored = self.allowances.spent_on(loop), self.allowances.restored_on(loop)
        await asyncio.to_thread(self.keeping.start, spent, restored)
        if self.allowances.have_budgets:
            self.allowances.restore(await asyncio.to_thread(self.keeping.spends))
        self.lag.start()

    async def stop(self) -> None:
        """Close the provider's connections and flush telemetry, within `FLUSH_SECONDS` or a little more."""
        self.lag.stop()
        await self.exposition.stop()
        await self.client.aclose()
        await asyncio.to_thread(self.keeping.stop, LEDGER_SECONDS)
        await asyncio.to_thread(self.telemetry.stop, FLUSH_SECONDS)


def create_gateway(
    settings: Settings,
    telemetry: Telemetry | None = None,
    providers: Sequence[Provider] = PROVIDERS,
    host: Host | None = None,
) -> Gateway:
    """Make the application. Call it after the fork: it starts threads. `host`: what it shares with its siblings."""
    telemetry = telemetry or start_telemetry(settings)
    clients = Clients(
        {name: _client(settings, upstream, telemetry) for name, upstream in settings.upstreams.items()},
        settings.idle_timeout,
    )
    keeping = Bookkeeping(telemetry, settings.ledger, settings.ledger_keep_days, settings.own_prices)
    host, pauses = host or Host(shared_state(1)), Pauses(telemetry)
    counted = ClientLimits(host.state, host.slot, fail_open=pauses.failed_open)
    allowances = Allowances(counted, _allowances(settings, telemetry))
    pipelines = _pipelines(settings, providers, clients, host, pauses, allowances)
    gate = Gate(settings, providers)
    app = LoopFlask("claude_proxy", static_folder=None)
    hooks.instrument(app, telemetry)
    hooks.open_and_close(app, Closing(telemetry, keeping.books), telemetry.tracing, gate)
    hooks.answer_errors(app, telemetry.log)
    exposition = Exposition(telemetry.metrics)
    ops.register(app, gate, exposition, lambda: keeping.writable)
    first_byte_timeout = min(settings.first_byte_timeout, settings.total_timeout)
    native.register(app, providers, pipelines, first_byte_timeout, _batching(telemetry, keeping))
    default_models = {name: upstream.default_model for name, upstream in settings.upstreams.items()}
    asker = Asker(providers, pipelines, default_models, first_byte_timeout, allowances.at_a_time)
    fan_out = generate.Limits(settings.batch_concurrency, settings.batch_max_prompts)
    generate.register(app, asker, fan_out)
    aggregate.register(app, asker, fan_out)
    return Gateway(
        app, telemetry, clients, exposition, LagMonitor(telemetry.metrics, telemetry.log), keeping, allowances
    )


def _client(settings: Settings, upstream: Upstream, telemetry: Telemetry) -> Client:
    return Client(
        upstream.base_url,
        lambda: Transport(proxy=upstream.proxy, ca_file=settings.ca_file),
        telemetry.tracing.provider,
        connect_timeout=settings.connect_timeout,
        idle_timeout=settings.idle_timeout,
    )


def _pipelines(
    settings: Settings,
    providers: Sequence[Provider],
    clients: Clients,
    host: Host,
    pauses: Pauses,
    allowances: Allowances,
) -> dict[str, Pipeline]:
    answers = Answers(settings.cache_bytes, settings.cache_ttl)
    opened = pauses.failed_open
    pacer = Pacer(host.state, host.slot, max_queue=settings.queue_size, fail_open=opened)

    def budget(name: str) -> RetryBudget:
        return RetryBudget(host.state, host.slot, name, settings.retry_budget, fail_open=opened)

    plan = Plan(Retries(settings.max_retries, settings.retry_unanswered), settings.fallbacks)
    return {
        provider.name: Pipeline(
            provider,
            clients[provider.name],
            pauses,
            plan,
            budget(provider.name),
            budget(f"{provider.name} stand-ins"),
            injects=settings.credentials == "inject",
            total_timeout=settings.total_timeout,
            caching=Caching(answers, pauses, provider.name) if settings.cache_ttl else None,
            capacity=Capacity(pacer, provider, pauses, settings.queue_timeout) if settings.pacing else None,
            allowances=allowances,
            capturing=_capturing(settings, provider),
        )
        for provider in providers
    }


def _capturing(settings: Settings, provider: Provider) -> Capturing | None:
    if not settings.capture_content or provider.content is None:
        return None
    secrets = [settings.metrics_token, *(upstream.key for upstream in settings.upstreams.values())]
    return Capturing(provider.content, without_keys(secrets))


def _batching(telemetry: Telemetry, keeping: Bookkeeping) -> dict[str, Batching]:
    if keeping.batches is None:
        return {}
    claude = Anthropic()
    return {claude.name: Batching(keeping.batches, telemetry.log, claude.name, claude.operation)}


def _allowances(settings: Settings, telemetry: Telemetry) -> dict[str, Allowance]:
    found = {}
    for name, given in settings.client_limits.items():
        budget = given.budget_usd_per_day
        if budget is not None:
            telemetry.metrics.set(catalog.CLIENT_BUDGET, budget, (name,))
        limits = Limits(
            given.requests_per_minute,
            given.tokens_per_minute,
            given.concurrency,
            None if budget is None else round(budget * 1e9),
        )
        found[name] = Allowance(limits, given.models)
    return found


def start_telemetry(settings: Settings) -> Telemetry:
    """Telemetry as the settings want it, with the closed label sets of this application."""
    return start(
        service_name=settings.service_name,
        version=service.__version__,
        traces=_trace_options(settings),
        log_level=settings.log_level,
        routes=ROUTES,
        models=models_of(PROVIDERS),
        clients=frozenset(client.name for client in settings.client_keys),
    )


def _trace_options(settings: Settings) -> Options:
    ratio = settings.sampler_ratio if "ratio" in settings.sampler else 1.0
    return Options(
        ratio=0.0 if settings.sampler == "parentbased_always_off" else ratio,
        per_second=settings.traces_per_second,
        endpoint=settings.otlp_endpoint,
        queue=settings.export_queue,
        delay=settings.export_delay_ms / 1000,
        slow=settings.trace_slow,
        off=settings.sampler == "always_off",
    )

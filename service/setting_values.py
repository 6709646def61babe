"""All settings as values, read once; `service.settings` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from service.parse import Allowance, ClientKey, is_loopback


@dataclass(frozen=True, slots=True)
class Upstream:
    """One provider's own settings; `key` is empty where there is none, `proxy` None where it is reached directly."""

    base_url: str
    default_model: str
    key: str = field(repr=False)
    proxy: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, read once. `repr` shows no secret."""

    bind: str
    workers: int
    log_level: str
    upstreams: Mapping[str, Upstream]
    """By the provider's name."""
    credentials: Literal["inject", "pass"]
    batch_concurrency: int
    batch_max_prompts: int
    connect_timeout: float
    first_byte_timeout: float
    idle_timeout: float
    total_timeout: float
    max_retries: int
    retry_budget: float
    retry_unanswered: bool
    fallbacks: dict[str, tuple[str, ...]]
    cache_ttl: int
    cache_bytes: int
    ledger: Path | None
    """None: there is none."""
    ledger_keep_days: int
    prices_file: Path | None
    own_prices: Mapping[tuple[str, str], Any] = field(repr=False)
    """What stood in `prices_file` as it was read (`account.prices_list.Listed` by provider and model): a worker that is
    started later must not find another file than was checked."""
    pacing: bool
    queue_timeout: float
    queue_size: int
    client_limits: dict[str, Allowance]
    graceful_timeout: int
    keepalive: int
    service_name: str
    otlp_endpoint: str
    sampler: str
    sampler_ratio: float
    traces_per_second: float
    trace_slow: float
    export_delay_ms: int
    export_queue: int
    capture_content: bool
    ca_file: str
    proxy: str = field(repr=False)
    """HTTPS_PROXY as it stands; what it means for each provider is in `upstreams`."""
    client_keys: tuple[ClientKey, ...] = field(repr=False)
    metrics_token: str = field(repr=False)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        return is_loopback(self.bind.rpartition(":")[0])

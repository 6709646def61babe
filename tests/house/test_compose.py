"""The compose file agrees with itself, with the settings, and with the files that it mounts."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest

from service import cli, settings
from service.web import ops
from tests.support.stack_files import (
    DASHBOARDS,
    DATASOURCES,
    JAEGER,
    PROMETHEUS,
    PROVIDERS,
    ROOT,
    Missing,
    compose,
    environment,
    load,
    service,
)

SERVICES = tuple(compose()["services"])
KEYS = {"CLAUDE_PROXY_CLIENT_KEYS": "me:" + "0" * 64, "CLAUDE_PROXY_METRICS_TOKEN": "token"}
LIVE = KEYS | {"ANTHROPIC_API_KEY": "sk-ant-key"}
SIMULATED = KEYS | {"COMPOSE_PROFILES": "simulator"}


def _mounts(name: str) -> list[tuple[str, str, str]]:
    """(source, target, mode) of a service's bind mounts."""
    parts = [volume.split(":") for volume in service(name).get("volumes", ()) if volume.startswith(".")]
    return [(source, target, mode[0] if mode else "") for source, target, *mode in parts]


def _published(name: str) -> dict[int, int]:
    """Port in the container to port on the host."""
    ports = (text.split(":") for text in service(name).get("ports", ()))
    return {int(inside): int(outside) for _, outside, inside in ports}


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    assert match
    return int(match[1])


def _jaeger_port(variable: str) -> int:
    match = re.search(rf"env:{variable}:-(\d+)", JAEGER.read_text(encoding="utf-8"))
    assert match
    return int(match[1])


def test_the_stack_is_gateway_jaeger_prometheus_grafana_and_the_simulator_as_a_profile() -> None:
    assert set(SERVICES) == {"gateway", "simulator", "jaeger", "prometheus", "grafana"}
    assert {name: service(name)["profiles"] for name in SERVICES if "profiles" in service(name)} == {
        "simulator": ["simulator"]
    }


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_to_an_exact_tag_and_name_no_registry(name: str) -> None:
    if "build" in service(name):
        assert (ROOT / service(name)["build"]["dockerfile"]).is_file()
    else:
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service(name)["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert [port for port in service(name).get("ports", ()) if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", SERVICES)
def test_containers_have_no_more_rights_and_resources_than_they_need(name: str) -> None:
    row = service(name)
    assert row["security_opt"] == ["no-new-privileges:true"]
    assert row["cap_drop"] == ["ALL"]
    assert row["restart"] == "unless-stopped"
    assert row["mem_limit"]
    assert row["pids_limit"]
    assert row["logging"]["options"]["max-size"]
    # Compose copies a secret from the environment into the container's file system, so that one must be writable.
    assert row.get("read_only", False) is ("secrets" not in row)


@pytest.mark.parametrize("name", SERVICES)
def test_every_mounted_file_is_tracked_by_git_and_read_only(name: str) -> None:
    for source, _target, mode in _mounts(name):
        tracked = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, text=True, check=True)
        assert tracked.stdout, f"{source} is not in the repository"
        assert mode == "ro"


def test_every_variable_of_the_gateway_is_a_setting() -> None:
    known = {row.name for row in settings.TABLE}
    assert [name for name in service("gateway")["environment"] if name not in known] == []


@pytest.mark.parametrize(
    ("variables", "upstream"),
    [
        (LIVE, "https://api.anthropic.com"),
        (SIMULATED, "http://simulator:8001"),
        (LIVE | SIMULATED, "http://simulator:8001"),
    ],
)
def test_the_gateway_accepts_the_environment_that_compose_gives_it(variables: dict[str, str], upstream: str) -> None:
    loaded = settings.load(environment("gateway", variables))
    assert loaded.upstreams["anthropic"].base_url == upstream
    assert loaded.upstreams["anthropic"].key
    assert not loaded.loopback


def test_a_base_url_of_ones_own_wins_over_the_profile() -> None:
    own = SIMULATED | {"CLAUDE_PROXY_ANTHROPIC_BASE_URL": "http://elsewhere:1"}
    assert environment("gateway", own)["CLAUDE_PROXY_ANTHROPIC_BASE_URL"] == "http://elsewhere:1"


@pytest.mark.parametrize("name", ["CLAUDE_PROXY_CLIENT_KEYS", "CLAUDE_PROXY_METRICS_TOKEN", "ANTHROPIC_API_KEY"])
def test_what_must_be_set_is_asked_for_by_a_message_that_says_where(name: str) -> None:
    with pytest.raises(Missing, match=r"to \.env"):
        environment("gateway", {key: value for key, value in LIVE.items() if key != name})


def test_no_secret_is_written_in_the_file() -> None:
    secret = re.compile(r"KEY|TOKEN|PASSWORD|SECRET")
    for name in SERVICES:
        for variable, value in service(name).get("environment", {}).items():
            assert not secret.search(variable) or value.startswith("${"), variable


def test_the_metrics_token_reaches_prometheus_as_the_file_that_it_reads() -> None:
    job = load(PROMETHEUS)["scrape_configs"][0]
    (secret,) = service("prometheus")["secrets"]
    assert job["authorization"] == {"type": "Bearer", "credentials_file": f"/run/secrets/{secret}"}
    source = compose()["secrets"][secret]["environment"]
    assert f"${{{source}:" in service("gateway")["environment"][source]


def test_prometheus_scrapes_the_gateway_where_it_listens_and_keeps_exemplars() -> None:
    port = environment("gateway", LIVE)["CLAUDE_PROXY_BIND"].rpartition(":")[2]
    assert [c["targets"] for c in load(PROMETHEUS)["scrape_configs"][0]["static_configs"]] == [[f"gateway:{port}"]]
    assert _published("gateway") == {int(port): 8000}
    assert "--enable-feature=exemplar-storage" in service("prometheus")["command"]
    assert f"--config.file=/etc/prometheus/{PROMETHEUS.name}" in service("prometheus")["command"]
    assert ("./observability/prometheus", "/etc/prometheus", "ro") in _mounts("prometheus")


def test_spans_go_to_the_port_on_which_jaeger_takes_them() -> None:
    otlp, query = _jaeger_port("JAEGER_OTLP_PORT"), _jaeger_port("JAEGER_QUERY_PORT")
    assert environment("gateway", LIVE)["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://jaeger:{otlp}"
    assert _published("jaeger") == {query: 16686, otlp: 4318}
    assert service("jaeger")["environment"]["JAEGER_LISTEN_HOST"] == "0.0.0.0"
    ((source, target, _mode),) = _mounts("jaeger")
    assert ROOT / source == JAEGER
    assert service("jaeger")["command"] == ["--config", target]


def test_grafana_reads_what_is_mounted_and_reaches_both_data_sources() -> None:
    mounts = {target: ROOT / source for source, target, _mode in _mounts("grafana")}
    assert mounts["/etc/grafana/provisioning/datasources"] == DATASOURCES.parent
    assert mounts["/etc/grafana/provisioning/dashboards"] == PROVIDERS.parent
    assert [mounts[p["options"]["path"]] for p in load(PROVIDERS)["providers"]] == [DASHBOARDS]
    home = service("grafana")["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DASHBOARDS / home.removeprefix(load(PROVIDERS)["providers"][0]["options"]["path"] + "/")).is_file()
    urls = {source["uid"]: source["url"] for source in load(DATASOURCES)["datasources"]}
    assert urls == {
        "prometheus": "http://prometheus:9090",
        "jaeger": f"http://jaeger:{_jaeger_port('JAEGER_QUERY_PORT')}",
    }


def test_the_ledger_is_on_a_volume_that_outlives_the_container_and_whose_owner_is_the_gateways_user() -> None:
    kept = environment("gateway", LIVE)["CLAUDE_PROXY_LEDGER"]
    volumes = dict(volume.split(":") for volume in service("gateway")["volumes"] if not volume.startswith("."))
    assert list(volumes.values()) == [kept]
    assert volumes.keys() <= compose()["volumes"].keys()
    # Docker gives a new volume the owner that the directory has in the image.
    image = (ROOT / service("gateway")["build"]["dockerfile"]).read_text(encoding="utf-8")
    user, group = re.findall(r"^USER (\d+):(\d+)$", image, re.MULTILINE)[0]
    assert f"install --directory --owner={user} --group={group} --mode=0700 {kept}\n" in image
    assert f"CLAUDE_PROXY_LEDGER={kept}\n" in image


def test_the_simulator_listens_where_the_gateway_looks_for_it() -> None:
    arguments = cli._parser().parse_args(service("simulator")["command"])
    looked_for = environment("gateway", SIMULATED)["CLAUDE_PROXY_ANTHROPIC_BASE_URL"]
    assert looked_for == f"http://simulator:{arguments.port}"
    assert arguments.host == "0.0.0.0"
    assert service("gateway")["depends_on"] == {"simulator": {"condition": "service_healthy", "required": False}}


def test_every_health_check_asks_something_that_exists() -> None:
    dockerfile = (ROOT / service("gateway")["build"]["dockerfile"]).read_text(encoding="utf-8")
    asked = re.findall(r"c\.request\('GET', '([^']+)'\)", dockerfile)
    assert set(asked) <= set(ops.RULES)
    assert asked
    checks: dict[str, Any] = {name: service(name)["healthcheck"]["test"] for name in SERVICES if name != "gateway"}
    assert str(cli._parser().parse_args(service("simulator")["command"]).port) in checks["simulator"][-1]
    assert checks["jaeger"][-1] == f"http://127.0.0.1:{_jaeger_port('JAEGER_HEALTH_PORT')}/status"
    assert checks["prometheus"][-1] == "--url=http://127.0.0.1:9090"
    assert checks["grafana"][-1] == f"http://127.0.0.1:{next(iter(_published('grafana')))}/api/health"


def test_docker_waits_longer_than_the_gateway_takes_to_drain() -> None:
    grace = settings.load(environment("gateway", LIVE)).graceful_timeout
    assert grace + 5 <= _seconds(service("gateway")["stop_grace_period"])


def test_settings_in_the_env_file_reach_the_gateway_without_being_named_here() -> None:
    assert service("gateway")["env_file"] == [{"path": ".env", "required": False}]

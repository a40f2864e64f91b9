"""The files of deploy/: every name in them is one that Kubernetes, Compose, Ray, MLflow or PostgreSQL's image knows.

The lines of its README are run by test_cluster.py. Both files were validated against the whole schemas that are named
below; here the fields that they use stand as a list, so that a new one is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.environment_variables
import pytest
import yaml
from mlflow.cli import cli as mlflow_cli
from ray_machines import ROOT, lines_of_readme

KUBERAY: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "ray-cluster.yaml").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
HEAD, WORKERS = KUBERAY["spec"]["headGroupSpec"], KUBERAY["spec"]["workerGroupSpecs"]
PODS = [group["template"]["spec"] for group in (HEAD, *WORKERS)]

# github.com/ray-project/kuberay/blob/feeaf72facab4881ba2b179248bb67315634e229/ray-operator/config/crd/bases/
# ray.io_rayclusters.yaml, version v1. A star: names of one's own, or those that a test below looks up.
FIELDS_OF_KUBERAY = """
    apiVersion kind metadata.name spec.rayVersion spec.authOptions.mode
    spec.headGroupSpec.rayStartParams.* spec.headGroupSpec.template.spec
    spec.workerGroupSpecs.groupName spec.workerGroupSpecs.replicas spec.workerGroupSpecs.minReplicas
    spec.workerGroupSpecs.maxReplicas spec.workerGroupSpecs.rayStartParams.* spec.workerGroupSpecs.template.spec
"""
# the core/v1 PodSpec within it
FIELDS_OF_PODS = """
    containers.name containers.image containers.env.name containers.env.value
    containers.ports.containerPort containers.ports.name containers.resources.limits.* containers.resources.requests.*
    containers.volumeMounts.name containers.volumeMounts.mountPath
    volumes.name volumes.persistentVolumeClaim.claimName
"""
# github.com/compose-spec/compose-spec/blob/170098ba07d9f53c383a41bfd4c5166b0a4529a6/schema/compose-spec.json
FIELDS_OF_COMPOSE = """
    name volumes.* configs.*.content services.*.image services.*.restart services.*.environment.*
    services.*.configs.source services.*.configs.target services.*.ports services.*.volumes services.*.command
    services.*.healthcheck.test services.*.healthcheck.interval services.*.healthcheck.timeout
    services.*.healthcheck.retries services.*.build.dockerfile_inline services.*.depends_on.*.condition
"""


def paths(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Of every value in nested mappings, the names on the way to it; the places in lists are none."""
    if isinstance(value, list):
        for item in value:
            yield from paths(item, at)
    elif isinstance(value, dict) and value:
        for name, item in value.items():
            yield from paths(item, (*at, name))
    else:
        yield at


def unknown(value: Any, fields: str) -> set[str]:
    known = [tuple(field.split(".")) for field in fields.split()]

    def is_known(path: tuple[str, ...]) -> bool:
        return any(
            len(path) in (len(field), len(field) - (field[-1] == "*"))
            and all(a in (b, "*") for a, b in zip(field, path, strict=False))
            for field in known
        )

    return {".".join(path) for path in paths(value) if not is_known(path)}


def test_every_field_is_one() -> None:
    assert unknown(COMPOSE, FIELDS_OF_COMPOSE) == set()
    for pod in PODS:
        assert unknown(pod, FIELDS_OF_PODS) == set()
    without_pods = yaml.safe_load(yaml.safe_dump(KUBERAY))
    for group in (without_pods["spec"]["headGroupSpec"], *without_pods["spec"]["workerGroupSpecs"]):
        group["template"]["spec"] = ""
    assert unknown(without_pods, FIELDS_OF_KUBERAY) == set()
    assert (KUBERAY["apiVersion"], KUBERAY["kind"]) == ("ray.io/v1", "RayCluster")
    assert KUBERAY["spec"]["authOptions"]["mode"] == "token"


def test_a_field_that_is_none_would_be_seen() -> None:
    assert unknown({"volumes": {"x": None}, "services": {"a": {"images": "b"}}}, FIELDS_OF_COMPOSE) == {
        "services.a.images"
    }


def test_what_ray_is_told_is_what_it_takes() -> None:
    from ray.scripts.scripts import start as ray_start

    options = {name.removeprefix("--") for option in ray_start.params for name in option.opts}
    for group in (HEAD, *WORKERS):
        assert group["rayStartParams"].keys() <= options and "block" not in group["rayStartParams"]
    for kind in ("head", "node"):
        assert set(re.findall(r"--([a-z-]+)", lines_of_readme()[kind])) <= options


def test_ray_has_the_same_settings_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's line, and every container; Ray has a use for each of them."""
    import ray
    from ray._common.usage import usage_lib

    line = dict(re.findall(r"(RAY_\w+)=(\S+)", lines_of_readme()["settings"]))
    wanted = {name: value for name, value in line.items() if "AUTH" not in name}  # KubeRay sets these itself
    for pod in PODS:
        (container,) = pod["containers"]
        assert {entry["name"]: entry["value"] for entry in container["env"]} == wanted
    binary = (Path(ray.__file__).parent / "_raylet.so").read_bytes()
    assert b"memory_monitor_refresh_ms" in binary  # its own settings are RAY_ and their name
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    assert not usage_lib.usage_stats_enabled()
    assert usage_lib._usage_stats_report_url().startswith("http://127.0.0.1:")  # that it is off, it reports once


def test_the_data_is_at_one_path_on_all_nodes() -> None:
    mounts = [(pod["containers"][0]["volumeMounts"], pod["volumes"]) for pod in PODS]
    assert all(mount == mounts[0] for mount in mounts)


def test_mlflows_server_is_told_what_it_takes() -> None:
    service = COMPOSE["services"]["mlflow"]
    program, verb, *words = service["command"]
    assert program == "mlflow"
    server = mlflow_cli.commands[verb]
    assert server.make_context(verb, list(words)).params["host"] == "0.0.0.0"
    known = {option.envvar for option in server.params} | set(vars(mlflow.environment_variables))
    assert service["environment"].keys() <= known
    assert service["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_services_are_on_loopback_and_no_password_is_written_down() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service["ports"])
    text = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    given = [line for line in text.splitlines() if "PASSWORD" in line and not line.startswith("#")]
    assert len(given) == 2 and all("${POSTGRES_PASSWORD:?" in line for line in given)
    # each has a database of its own: both keep the version of their tables in `alembic_version`
    assert COMPOSE["configs"]["mlflow-database"]["content"] == "CREATE DATABASE mlflow;"
    assert "@postgres:5432/mlflow" in COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]

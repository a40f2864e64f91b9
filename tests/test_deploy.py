"""The files of deploy/: every name in them is one that Kubernetes, Compose, Ray, MLflow or PostgreSQL's image knows.

The lines of its README are run by test_cluster.py. Both files were validated against the whole schemas that are named
below; here the fields that they use stand as a list, so that a new one is looked up.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.environment_variables
import pytest
import yaml
from mlflow.cli import cli as mlflow_cli
from ray_machines import ROOT, lines_of_readme
from studies import command_of

from cst_search.cli import app

KUBERAY: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "ray-cluster.yaml").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
SEARCH: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "search.yaml").read_text(encoding="utf-8"))
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
    services.*.build.context services.*.build.dockerfile services.*.entrypoint services.*.shm_size
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
    assert unknown(COMPOSE, FIELDS_OF_COMPOSE) == set() == unknown(SEARCH, FIELDS_OF_COMPOSE)
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
    ray = SEARCH["services"]["ray"]
    verb, *words = ray["command"]
    assert (ray["entrypoint"], verb) == (["ray"], "start")
    assert {word.removeprefix("--").partition("=")[0] for word in words} <= options


def test_ray_has_the_same_settings_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's line, and every container; Ray has a use for each of them."""
    import ray
    from ray._common.usage import usage_lib

    line = dict(re.findall(r"(RAY_\w+)=(\S+)", lines_of_readme()["settings"]))
    wanted = {name: value for name, value in line.items() if "AUTH" not in name}  # KubeRay sets these itself
    for pod in PODS:
        (container,) = pod["containers"]
        assert {entry["name"]: entry["value"] for entry in container["env"]} == wanted
    said = SEARCH["services"]["ray"]["environment"]
    assert {name: value for name, value in said.items() if "AUTH" not in name} == wanted
    assert said["RAY_AUTH_MODE"] == "token" and said["RAY_AUTH_TOKEN"].startswith("${CLUSTER_TOKEN:?")
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


def test_containers_find_each_other() -> None:
    """`search.yaml` is laid over `compose.yaml`: what one names, one of them has."""
    services = COMPOSE["services"] | {"ray": SEARCH["services"]["ray"]}
    ray = services["ray"]
    assert set(ray["depends_on"]) <= services.keys() and SEARCH["services"].keys() <= services.keys()
    assert {config["source"] for config in ray["configs"]} <= SEARCH["configs"].keys()
    assert {volume.partition(":")[0] for volume in ray["volumes"]} - {"${DATA"} <= SEARCH["volumes"].keys()
    # the study's database is not MLflow's, on the server and for the user of compose.yaml
    url = SEARCH["configs"]["storage-url"]["content"]
    postgres = services["postgres"]["environment"]
    assert url.startswith(f"postgresql+psycopg://{postgres['POSTGRES_USER']}:${{POSTGRES_PASSWORD:?")
    assert url.endswith(f"@postgres:5432/{postgres['POSTGRES_DB']}")
    # MLflow answers to the name that the search calls it by
    assert "mlflow:*" in SEARCH["services"]["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert "ports" not in ray  # Ray's ports stay within the network of the containers


def test_the_searchs_line_is_one_that_the_program_takes() -> None:
    text = (ROOT / "deploy" / "search.yaml").read_text(encoding="utf-8")
    line = re.sub(r"\\\n# *", "", text).partition("exec ray cst-search ")[2].partition("\n")[0]
    verb, *words = line.replace("@/storage.url", "postgresql+psycopg://a:b@c/d").split()
    command = command_of(app).commands[verb]
    parameters = command.make_context(verb, words).params
    assert parameters["address"] == "auto" and parameters["data"] == ["/data/SET"]
    assert "/data:ro" in SEARCH["services"]["ray"]["volumes"][1]


DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_gets_all_that_the_wheel_is_built_from() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    metadata = project["project"]
    needed = {"pyproject.toml", metadata["readme"], *metadata["license-files"]}
    needed |= {*wheel["packages"], *wheel["force-include"]}
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, flags=re.M) for word in line.split()}
    assert copied == needed
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied and "*" in ignored
    (extra,) = re.findall(r'"\.\[(\w+)\]"', DOCKERFILE)
    assert extra in metadata["optional-dependencies"]


def test_the_image_has_a_version_a_user_and_the_programs_name() -> None:
    lines = [line.partition(" ")[::2] for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    said = dict(lines)
    assert re.fullmatch(r"python:3\.\d+-slim", said["FROM"]) and said["USER"] == "1000"
    assert set(said) == {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "ENTRYPOINT", "CMD"}
    assert said["ENTRYPOINT"] == '["cst-search"]' and said["ENV"] == f"CST_SEARCH_HOME={said['VOLUME']}"
    python = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert said["FROM"].removeprefix("python:").removesuffix("-slim") == python.removeprefix(">=")

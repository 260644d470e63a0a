"""infra/compose.yaml with .env.example and .gitignore: against the Compose Specification and our own promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

SCHEMA = Path(__file__).parent / "schemas" / "compose-spec.json"
SECRETS = {"POSTGRES_PASSWORD", "PREFECT_AUTH", "RAY_AUTH_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
ONCE = {"bucket"}


@pytest.fixture(scope="module")
def variables(infra):
    """Name -> what stands behind it in `${NAME...}`."""
    found = {}
    for name, rest in re.findall(r"(?<!\$)\$\{([A-Z_]+)([^}]*)\}", (infra / "compose.yaml").read_text()):
        found.setdefault(name, set()).add(rest)
    return found


@pytest.fixture(scope="module")
def example(infra):
    lines = (infra / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def ours(compose):
    return {name: service for name, service in compose["services"].items() if name != "database"}


def test_the_file_follows_the_compose_specification(compose):
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(compose)


def test_the_schema_rejects_a_misspelt_key(compose):
    wrong = {**compose, "services": {"store": {**compose["services"]["store"], "helthcheck": {}}}}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(wrong)


def test_no_secret_has_a_default(variables, example):
    assert set(variables) >= SECRETS
    for name in SECRETS:
        assert all(rest.startswith(":?") for rest in variables[name]), name
        assert example[name] == ""


def test_the_example_lists_exactly_the_variables_of_the_file(variables, example):
    assert set(example) == set(variables)


def test_defaults_are_those_of_the_example(variables, example):
    for name in set(variables) - SECRETS:
        assert variables[name] == {f":-{example[name]}"}


def test_no_environment_holds_a_secret_by_value(compose):
    for name, service in compose["services"].items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|AUTH_STRING|ACCESS_KEY", key):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?.*\}", value), (name, key)


def test_the_file_with_the_secrets_stays_out_of_git(infra):
    assert "/.env" in (infra / ".gitignore").read_text().splitlines()


def test_the_example_bucket_is_that_of_the_parameters(root, example):
    assert example["RESFLOW_BUCKET"] == yaml.safe_load((root / "params.yaml").read_text())["store"]["bucket"]


def test_ports_are_published_on_loopback_only(compose):
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_every_lasting_service_is_watched_and_comes_back(compose):
    for name, service in compose["services"].items():
        if name in ONCE:
            assert service["restart"] == "no"
        else:
            assert service["healthcheck"]["test"], name
            assert service["restart"] == "unless-stopped", name


def test_services_wait_for_others_to_be_ready(compose):
    for service in compose["services"].values():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how == {"condition": wanted}


def test_our_services_run_the_image_of_the_dockerfile_with_few_rights(compose, infra, image):
    for name, service in ours(compose).items():
        assert service["image"] == image, name
        assert (
            infra / service["build"]["context"] / service["build"]["dockerfile"]
        ) == infra / ".." / "infra" / "Dockerfile"
        assert service["cap_drop"] == ["ALL"]
        assert "user" not in service
        assert not service.get("privileged")


def test_the_build_arguments_are_those_of_the_dockerfile(compose, instructions):
    declared = {rest.split("=")[0] for word, rest in instructions if word == "ARG"}
    for service in ours(compose).values():
        assert set(service["build"]["args"]) == declared


def test_the_foreign_image_is_pinned(compose):
    assert re.fullmatch(r"postgres:\d+\.\d+-bookworm", compose["services"]["database"]["image"])


def test_named_volumes_are_declared_and_used(compose):
    used = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith(".")
    }
    assert used == set(compose["volumes"])


def test_whoever_runs_stages_sees_the_same_folder_at_the_same_path(compose, instructions):
    (workdir,) = [rest for word, rest in instructions if word == "WORKDIR"]
    for name in ("prefect-worker", "ray-head", "ray-worker"):
        assert compose["services"][name]["volumes"] == [f"..:{workdir}"]


def test_the_folder_of_the_store_belongs_to_the_user_of_the_image(compose, instructions):
    (volume,) = compose["services"]["store"]["volumes"]
    folder = volume.split(":")[1]
    assert f"-dir={folder}" in compose["services"]["store"]["command"]
    assert any(
        f" {folder} " in f"{rest} " and "--owner=resflow" in rest for word, rest in instructions if word == "RUN"
    )


def test_only_s3_is_heard_outside_the_store_and_no_bucket_appears_by_itself(compose):
    flags = set(compose["services"]["store"]["command"])
    assert {
        "-ip.bind=127.0.0.1",
        "-s3.ip.bind=0.0.0.0",
        "-s3.autoCreateBucket=false",
        "-master.telemetry=false",
    } <= flags


def test_addresses_name_services_and_their_ports(compose):
    services = compose["services"]
    worker = services["prefect-worker"]["environment"]
    assert worker["RAY_ADDRESS"] == "ray-head:6379"
    assert "--port=6379" in services["ray-head"]["command"]
    assert worker["PREFECT_API_URL"] == "http://prefect-server:4200/api"
    assert "4200" in services["prefect-server"]["command"]
    assert worker["AWS_ENDPOINT_URL_S3"] == "http://store:8333"
    assert "-s3.port=8333" in services["store"]["command"]


def test_ray_and_prefect_ask_for_their_secrets(compose):
    services = compose["services"]
    for name in ("ray-head", "ray-worker", "prefect-worker"):
        environment = services[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    server, worker = (services[name]["environment"] for name in ("prefect-server", "prefect-worker"))
    assert server["PREFECT_SERVER_API_AUTH_STRING"] == worker["PREFECT_API_AUTH_STRING"]


def test_the_settings_of_prefect_exist(compose):
    known = prefect_settings()
    for service in compose["services"].values():
        for name in service.get("environment", {}):
            assert not name.startswith("PREFECT_") or name in known


def prefect_settings():
    """The environment variables that Prefect's settings read."""
    from prefect.settings import Settings
    from pydantic import AliasChoices, BaseModel

    def names(model):
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from names(field.annotation)
                continue
            yield f"{model.model_config.get('env_prefix', '')}{name}".upper()
            if isinstance(field.validation_alias, AliasChoices):
                yield from (choice.upper() for choice in field.validation_alias.choices if isinstance(choice, str))

    return set(names(Settings))

"""infra/ray-cluster.yaml: by Ray's own code for `ray up`, and its machines by the published model of EC2."""

from __future__ import annotations

import copy

import botocore.session
import jsonschema
import pytest
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config


@pytest.fixture(scope="module")
def prepared(ray_up):
    """The file as `ray up` completes it."""
    return prepare_config(copy.deepcopy(ray_up))


def test_the_file_follows_the_schema_of_ray(prepared):
    validate_config(prepared)


def test_the_schema_rejects_a_misspelt_key(ray_up):
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        validate_config(prepare_config({**copy.deepcopy(ray_up), "max_wokers": 1}))


def test_none_of_rays_default_commands_install_another_ray(prepared):
    commands = [command for key, value in prepared.items() if key.endswith("_commands") for command in value]
    assert commands
    assert not [command for command in commands if "pip install" in command]


def test_the_image_is_that_of_the_dockerfile(prepared, image):
    assert prepared["docker"]["image"] == f"registry.example.org/{image}"


def test_every_node_and_driver_knows_the_token(prepared):
    assert prepared["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env RAY_AUTH_MODE=token" in prepared["docker"]["run_options"]


def test_all_nodes_mount_the_shared_folder_over_the_code(prepared, instructions):
    (workdir,) = [rest for word, rest in instructions if word == "WORKDIR"]
    assert f"--volume /srv/resflow:{workdir}" in prepared["docker"]["run_options"]
    assert any(
        "mount -t nfs4" in command and "/srv/resflow" in command for command in prepared["initialization_commands"]
    )


def test_logging_in_is_not_open_to_the_world(prepared):
    rules = prepared["provider"]["security_group"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in rules] == [(22, 22)]
    assert all(address["CidrIp"] != "0.0.0.0/0" for rule in rules for address in rule["IpRanges"])


def test_workers_have_a_gpu_and_the_head_trains_nothing(prepared):
    kinds = prepared["available_node_types"]
    assert prepared["head_node_type"] == "head"
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["gpu"]["resources"]["GPU"] >= 1
    assert kinds["gpu"]["max_workers"] <= prepared["max_workers"]


@pytest.mark.parametrize("kind", ["head", "gpu"])
def test_the_machines_are_what_ec2_takes(prepared, kind):
    wanted = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    node = {**prepared["available_node_types"][kind]["node_config"], "MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(node, wanted)
    assert not report.has_errors(), report.generate_report()
    assert node["InstanceType"] in wanted.members["InstanceType"].enum
    for block in node["BlockDeviceMappings"]:
        assert block["Ebs"]["Encrypted"]
    assert node["MetadataOptions"]["HttpTokens"] == "required"

"""infra/raycluster.yaml: a closed list of fields, and what we promise about it.

KubeRay's CRD is in no package that tests could install, so the list stands here, written after KubeRay's API reference
and narrower than the CRD: a field that is not in it fails the test, and is to be looked up before it is added.
"""

from __future__ import annotations

import copy

import jsonschema
import pytest

TEXT = {"type": "string", "minLength": 1}
NUMBER = {"type": "integer", "minimum": 0}
NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"}


def record(required="", **fields):
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def each(item):
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values):
    return {"enum": list(values)}


AMOUNTS = {
    "type": "object",
    "propertyNames": {"enum": ["cpu", "memory", "nvidia.com/gpu"]},
    "additionalProperties": QUANTITY,
}
RESOURCES = record("requests limits", requests=AMOUNTS, limits=AMOUNTS)
MOUNTS = each(record("name mountPath", name=NAME, mountPath={"type": "string", "pattern": "^/"}))
PROBE = record(
    "exec",
    exec=record("command", command=each(TEXT)),
    initialDelaySeconds=NUMBER,
    periodSeconds=NUMBER,
    timeoutSeconds=NUMBER,
    failureThreshold=NUMBER,
)
CONTAINER = record(
    "name image resources securityContext volumeMounts",
    name=NAME,
    image=TEXT,
    command=each(TEXT),
    env=each(record("name value", name=TEXT, value=TEXT)),
    envFrom=each(record("secretRef", secretRef=record("name", name=NAME))),
    ports=each(record("name containerPort", name=NAME, containerPort=NUMBER)),
    resources=RESOURCES,
    volumeMounts=MOUNTS,
    startupProbe=PROBE,
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    securityContext=record(
        "allowPrivilegeEscalation capabilities",
        allowPrivilegeEscalation={"const": False},
        capabilities=record("drop", drop={"const": ["ALL"]}),
    ),
)
POD = record(
    "containers restartPolicy securityContext volumes",
    containers={**each(CONTAINER), "maxItems": 1},
    initContainers=each(CONTAINER),
    restartPolicy={"const": "Never"},
    securityContext=record(
        "runAsNonRoot runAsUser",
        runAsNonRoot={"const": True},
        runAsUser={"type": "integer", "minimum": 1},
        runAsGroup=NUMBER,
        fsGroup=NUMBER,
        seccompProfile=record("type", type={"const": "RuntimeDefault"}),
    ),
    tolerations=each(record("key operator", key=TEXT, operator=one_of("Exists", "Equal"), effect=TEXT)),
    volumes=each(
        {
            **record(
                "name",
                name=NAME,
                persistentVolumeClaim=record("claimName", claimName=NAME),
                emptyDir=record("medium sizeLimit", medium={"const": "Memory"}, sizeLimit=QUANTITY),
            ),
            "minProperties": 2,
            "maxProperties": 2,
        }
    ),
)
TEMPLATE = record("spec", spec=POD)
# options of `ray start`, without dashes; values are always text
START = {"type": "object", "additionalProperties": {"type": "string"}}
CLUSTER = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=record("name", name=NAME),
    spec=record(
        "rayVersion authOptions headGroupSpec workerGroupSpecs",
        rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        authOptions=record("mode", mode=one_of("token", "disabled")),
        enableInTreeAutoscaling={"type": "boolean"},
        autoscalerOptions=record(
            version=one_of("v1", "v2"),
            upscalingMode=one_of("Default", "Aggressive", "Conservative"),
            idleTimeoutSeconds=NUMBER,
            resources=RESOURCES,
        ),
        headGroupSpec=record("rayStartParams template", rayStartParams=START, template=TEMPLATE),
        workerGroupSpecs=each(
            record(
                "groupName replicas minReplicas maxReplicas rayStartParams template",
                groupName=NAME,
                replicas=NUMBER,
                minReplicas=NUMBER,
                maxReplicas=NUMBER,
                rayStartParams=START,
                template=TEMPLATE,
            )
        ),
    ),
)
CLAIM = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "v1"},
    kind={"const": "PersistentVolumeClaim"},
    metadata=record("name", name=NAME),
    spec=record(
        "accessModes resources",
        accessModes={"const": ["ReadWriteMany"]},
        storageClassName=NAME,
        resources=record("requests", requests=record("storage", storage=QUANTITY)),
    ),
)


@pytest.fixture
def spec(kubernetes):
    return kubernetes["RayCluster"]["spec"]


@pytest.fixture
def groups(spec):
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


@pytest.fixture
def pods(groups):
    return [group["template"]["spec"] for group in groups]


@pytest.fixture
def containers(pods):
    return [container for pod in pods for key in ("initContainers", "containers") for container in pod.get(key, [])]


def amount(quantity):
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    number = quantity.rstrip("mKMGTi")
    return float(number) * units.get(quantity[len(number) :], 1)


def test_the_objects_have_only_fields_that_were_looked_up(kubernetes):
    jsonschema.validate(kubernetes["RayCluster"], CLUSTER)
    jsonschema.validate(kubernetes["PersistentVolumeClaim"], CLAIM)
    assert len(kubernetes) == 2


def test_a_misspelt_field_is_found(kubernetes):
    wrong = copy.deepcopy(kubernetes["RayCluster"])
    wrong["spec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(wrong, CLUSTER)


def test_the_version_of_ray_is_the_locked_one(spec, locked):
    assert spec["rayVersion"] == locked["ray"]


def test_every_container_runs_the_image_of_the_dockerfile(containers, image):
    assert {container["image"] for container in containers} == {f"registry.example.org/{image}"}


def test_the_cluster_asks_for_a_token(spec):
    assert spec["authOptions"] == {"mode": "token"}


def test_the_number_of_workers_follows_the_work_within_limits(spec):
    assert spec["enableInTreeAutoscaling"] is True
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_head_trains_nothing_and_workers_have_a_gpu(spec):
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        resources = pod["containers"][0]["resources"]
        assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"]
        assert any(toleration["key"] == "nvidia.com/gpu" for toleration in pod["tolerations"])


def test_requests_stay_within_limits(spec, containers):
    for resources in [spec["autoscalerOptions"]["resources"], *(container["resources"] for container in containers)]:
        assert set(resources["requests"]) == set(resources["limits"])
        for name, wanted in resources["requests"].items():
            assert amount(wanted) <= amount(resources["limits"][name])


def test_mounts_name_volumes_and_volumes_name_claims(kubernetes, pods):
    claim = kubernetes["PersistentVolumeClaim"]["metadata"]["name"]
    for pod in pods:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"] + pod.get("initContainers", []):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
        assert volumes["resflow"]["persistentVolumeClaim"]["claimName"] == claim


def test_every_node_sees_the_same_folder_over_the_code(pods, instructions):
    (workdir,) = [rest for word, rest in instructions if word == "WORKDIR"]
    for pod in pods:
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts == {"resflow": workdir, "shared-memory": "/dev/shm"}


def test_pods_run_as_the_user_of_the_image(pods, instructions):
    (uid,) = [rest.split("=")[1] for word, rest in instructions if word == "ARG" and rest.startswith("UID=")]
    for pod in pods:
        assert pod["securityContext"]["runAsUser"] == int(uid)


def test_nodes_are_probed_without_the_agent_that_is_not_installed(pods):
    for pod in pods:
        for probe in ("readinessProbe", "livenessProbe"):
            assert "ray health-check" in " ".join(pod["containers"][0][probe]["exec"]["command"])

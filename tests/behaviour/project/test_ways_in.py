"""Container recipes name all that the package is built from, with its pins; the release workflow stores no token."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from tests.container_steps import KNOWN, sections
from tests.patience import patience

ROOT = Path(__file__).parents[3]
DOCKERFILE, APPTAINER = ROOT / "containers" / "Dockerfile", ROOT / "containers" / "theworld.def"


def copied_by_docker() -> set[str]:
    lines = re.findall(r"^COPY (.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    return {name for line in lines for name in line.split()}


def copied_by_apptainer() -> set[str]:
    [section] = re.findall(r"^%files\n(.+?)\n\n", APPTAINER.read_text(), re.MULTILINE | re.DOTALL)
    pairs = [line.split() for line in section.splitlines()]
    assert all(there == f"/src/{here}" for here, there in pairs)
    return {here for here, _ in pairs}


def test_both_recipes_copy_the_same_and_the_ignore_file_lets_nothing_else_in() -> None:
    assert copied_by_docker() == copied_by_apptainer()
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied_by_docker()


@pytest.mark.slow
def test_what_they_copy_builds_the_package_with_its_weights(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for name in copied_by_docker():
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "-w", tmp_path, source], check=True, timeout=patience(120))
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    weights = [path for room in ("precompute", "train") for path in (ROOT / room).rglob("*.safetensors")]
    assert weights
    assert {f"theworld/{path.relative_to(ROOT)}" for path in weights} <= set(names)


def test_the_pins_of_torch_are_those_of_the_constraints() -> None:
    [torch] = re.findall(r"^torch==[\d.]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"ARG TORCH={torch}\n" in DOCKERFILE.read_text()
    assert f" {torch}\n" in APPTAINER.read_text()
    command = "grep -v '^torch==' constraints.txt"
    assert command in DOCKERFILE.read_text()
    assert command in APPTAINER.read_text()
    pins = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "torch==" not in pins.splitlines()
    assert "transformers==" in pins


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", DOCKERFILE], capture_output=True, text=True, timeout=patience(60)
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_trial_of_the_steps_reads_both_recipes() -> None:
    """`make containers` runs them: it takes root, debootstrap and, with CUDA's libraries, 12 GB."""
    assert {"files", "post", "test", "runscript"} <= dict(sections(APPTAINER.read_text())).keys()
    assert {line["instruction"] for line in DockerfileParser(path=str(DOCKERFILE.parent)).structure} <= KNOWN


def test_the_steps_of_apptainer_are_shell_and_no_image_runs_as_root() -> None:
    [post] = re.findall(r"^%post\n(.+?)\n\n", APPTAINER.read_text(), re.MULTILINE | re.DOTALL)
    subprocess.run(["sh", "-n"], input=post, text=True, check=True)
    for step in re.findall(r"^RUN (.+?[^\\])$", DOCKERFILE.read_text(), re.MULTILINE | re.DOTALL):
        subprocess.run(["sh", "-n"], input=step, text=True, check=True)
    assert re.search(r"^USER 1000:1000$", DOCKERFILE.read_text(), re.MULTILINE)


def read(path: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / ".github" / path).read_text())


@pytest.mark.parametrize("name", ["bug_report", "feature_request"])
def test_each_field_of_an_issue_template_has_a_kind_and_a_label(name: str) -> None:
    form = read(f"ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    assert all(field["attributes"]["label"] for field in form["body"])
    assert {field["type"] for field in form["body"]} <= {"textarea", "input", "checkboxes", "dropdown"}
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))


def test_the_release_is_published_without_a_stored_token_and_by_the_job_that_builds_nothing() -> None:
    workflow = read("workflows/release.yml")
    assert workflow["permissions"] == {}
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert build["permissions"] == {"contents": "read"}
    assert publish["needs"] == "build"
    assert not any("run" in step for step in publish["steps"])
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()
    script = next(step["run"] for step in build["steps"] if "TAG" in step.get("env", {}))
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for tag, code in ((f"v{version[1]}", 0), ("v9.9.9", 1)):
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=ROOT,
            env={"TAG": tag, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        )
        assert done.returncode == code

# SPDX-License-Identifier: Apache-2.0
"""The wheel carries all three packages with their data, and the version is one constant."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import attn_codegen
import attn_runtime
from attn_codegen import presets, renderer
from folders import on_disk

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("codegen/attn_codegen", "runtime/attn_runtime", "templates/attn_templates")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(
        "hatchling", reason="needs hatchling: not installed (pip install hatchling)"
    )
    out = tmp_path_factory.mktemp("wheel")
    code = f"import hatchling.build; hatchling.build.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_header_and_template(wheel: Path) -> None:
    expected = {
        path.relative_to((ROOT / package).parent).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert any(name.endswith(".cuh") for name in held)
    assert any(name.endswith(".j2") for name in held)
    assert {f"{Path(package).name}/py.typed" for package in PACKAGES} <= held


def test_the_installed_wheel_emits_what_the_checkout_emits(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    others = [path for path in sys.path if path and not path.startswith(str(ROOT))]
    env = dict(os.environ, PYTHONPATH=":".join([str(site), *others]))
    command = [sys.executable, "-m", "attn_codegen", "emit"]
    subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=True)
    assert on_disk(tmp_path / "generated") == renderer.render(presets.preset("default"))


def test_the_wheel_has_the_licence_the_version_and_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = {
        name.split(".dist-info/")[1]: name for name in archive.namelist() if ".dist-info/" in name
    }
    assert "licenses/LICENSE" in info
    metadata = archive.read(info["METADATA"]).decode()
    assert f"Version: {attn_codegen.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert b"attn-codegen = attn_codegen.cli:main" in archive.read(info["entry_points.txt"])


def test_an_emit_needs_click_and_jinja_and_the_rest_numpy() -> None:
    base = {requirement.split(">")[0] for requirement in PROJECT["project"]["dependencies"]}
    assert base == {"click", "jinja2", "numpy"}
    extras = PROJECT["project"]["optional-dependencies"]
    assert {item.split(">")[0] for item in extras["runtime"]} == {"pycuda", "cuda-bindings"}


def test_the_changelog_knows_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {attn_codegen.__version__}" in changelog


def test_both_packages_say_the_version() -> None:
    assert attn_runtime.__version__ == attn_codegen.__version__

# SPDX-License-Identifier: Apache-2.0
"""A build that emits its kernels itself, by attn_codegen_emit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from vendored import HERE

from cmake_project import Project, checked, missing_cmake, refusal

pytestmark = [
    pytest.mark.nvcc,
    pytest.mark.skipif(missing_cmake() is not None, reason=missing_cmake() or ""),
]

ROOT = HERE.parents[1]
NAME = "prefill_sm80_f16_d80_linear_causal"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the generator, to be changed."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("codegen", "templates"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Project:
    made = Project(HERE / "emitting", tmp_path_factory.mktemp("emitting") / "build")
    config = checkout / "templates" / "attn_templates" / "cmake"
    checked(made.configure(attn_codegen_DIR=config))
    made.make()
    return made


def test_the_kernels_are_emitted_built_and_linked(project: Project) -> None:
    assert project.run("emitting").stdout == f"{NAME}\n"


def test_nothing_is_done_when_nothing_changed(project: Project) -> None:
    printed = project.make()
    assert "Emitting" not in printed
    assert "Building" not in printed


def test_a_change_of_the_generator_that_changes_no_text_compiles_nothing(
    project: Project, checkout: Path
) -> None:
    (checkout / "codegen" / "attn_codegen" / "space.py").touch()
    printed = project.make()
    assert "Emitting" in printed
    assert "Building" not in printed
    assert "Emitting" not in project.make()


def test_a_change_of_a_template_compiles_what_it_is_in(project: Project, checkout: Path) -> None:
    source = checkout / "templates" / "attn_templates" / "cuda" / "src" / "attn_c.cpp"
    source.write_text(source.read_text() + "\n// changed\n")
    printed = project.make()
    assert "attn_c.cpp" in printed
    assert ".cu.o" not in printed
    assert "Emitting" not in project.make()


def test_a_configuration_that_does_not_exist_is_the_generators_own_message(
    project: Project, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(project.source, source)
    text = (source / "CMakeLists.txt").read_text()
    (source / "CMakeLists.txt").write_text(text.replace("_d80_", "_d81_"))
    cache = (project.build / "CMakeCache.txt").read_text()
    folder = next(
        line.split("=", 1)[1] for line in cache.splitlines() if line.startswith("attn_codegen_DIR:")
    )
    said = refusal(Project(source, tmp_path / "build").configure(attn_codegen_DIR=folder))
    assert "head_dim 81 is not supported" in said

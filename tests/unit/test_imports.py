# SPDX-License-Identifier: Apache-2.0
"""The import law: which layer may import what, and that nothing happens at import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODEGEN = ROOT / "codegen" / "attn_codegen"
RUNTIME = ROOT / "runtime" / "attn_runtime"
TEMPLATES = ROOT / "templates" / "attn_templates"

# The command line's modules; everything below them is a library.
EDGE = (
    "attn_codegen.options",
    "attn_codegen.report",
    "attn_codegen.__main__",
    *(f"attn_codegen.{path.stem}" for path in CODEGEN.glob("cli*.py")),
)
COMMANDS = tuple(path.name for path in CODEGEN.glob("cli*.py"))


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement."""

    module: str
    at: str
    in_function: bool
    for_types: bool

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file, relative ones resolved by their last name."""

    def walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            typing = for_types or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            )
            at = f"{path.relative_to(ROOT)}:{getattr(child, 'lineno', 0)}"
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, at, inside, typing)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{at}: imports are absolute"
                for alias in child.names:
                    yield Import(f"{child.module}.{alias.name}", at, inside, typing)
            else:
                yield from walk(child, inside, typing)

    yield from walk(ast.parse(path.read_text()), False, False)


def all_imports(folder: Path) -> list[tuple[Path, Import]]:
    return [(path, found) for path in sorted(folder.rglob("*.py")) for found in imports_of(path)]


def is_edge(found: Import) -> bool:
    return any(found.module == edge or found.module.startswith(f"{edge}.") for edge in EDGE)


def test_the_generator_imports_the_standard_library_click_and_jinja_only() -> None:
    allowed = {"attn_codegen", "attn_templates", "click", "jinja2"} | sys.stdlib_module_names
    for path, found in all_imports(CODEGEN):
        lazy_numpy = found.package == "numpy" and (found.in_function or found.for_types)
        lazy = found.in_function or found.for_types
        runtime = found.package == "attn_runtime" and lazy and path.name in COMMANDS
        assert found.package in allowed or lazy_numpy or runtime, (
            f"{found.at} imports {found.module}"
        )


def test_only_the_renderer_knows_jinja_and_only_the_edge_knows_click() -> None:
    for path, found in all_imports(CODEGEN):
        if found.package == "jinja2":
            assert path.name == "renderer.py", found.at
        if found.package == "click":
            assert path.name in (*COMMANDS, "options.py"), found.at


def test_no_library_module_imports_the_command_line() -> None:
    for path, found in [*all_imports(CODEGEN), *all_imports(RUNTIME)]:
        if f"attn_codegen.{path.stem}" not in EDGE or path.is_relative_to(RUNTIME):
            assert not is_edge(found), f"{found.at} imports {found.module}"


def test_only_the_driver_imports_pycuda_and_cuda_and_only_inside_functions() -> None:
    for path, found in [*all_imports(CODEGEN), *all_imports(RUNTIME)]:
        if found.package in ("pycuda", "cuda") and not found.for_types:
            assert path == RUNTIME / "driver.py", f"{found.at} imports {found.module}"
            assert found.in_function, f"{found.at} imports {found.module} at import"


def test_no_module_needs_torch_or_cupy_to_be_imported() -> None:
    for _, found in [*all_imports(CODEGEN), *all_imports(RUNTIME)]:
        if found.package in ("torch", "cupy"):
            assert found.in_function or found.for_types, f"{found.at} imports {found.module}"


def test_the_plan_is_pure() -> None:
    pure = {"numpy", "attn_runtime"} | sys.stdlib_module_names
    impure = {"os", "sys", "subprocess", "pathlib", "ctypes", "logging"}
    for found in imports_of(RUNTIME / "plan.py"):
        assert found.package in pure - impure, f"{found.at} imports {found.module}"


def test_the_templates_are_data_without_logic() -> None:
    modules = list(TEMPLATES.rglob("*.py"))
    assert modules == [TEMPLATES / "__init__.py"]
    assert [type(node) for node in ast.parse(modules[0].read_text()).body] == [ast.Expr]


def calls_of(path: Path) -> Iterator[tuple[str, str]]:
    """(dotted name, place) of every call with a plain name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), f"{path.relative_to(ROOT)}:{node.lineno}"


def test_library_code_neither_prints_nor_exits() -> None:
    for path in [*CODEGEN.rglob("*.py"), *RUNTIME.rglob("*.py")]:
        if path.name in (*COMMANDS, "options.py"):
            continue
        for name, at in calls_of(path):
            assert name not in ("print", "exit", "quit", "sys.exit", "os._exit", "click.echo"), at


def test_only_the_writer_and_its_lock_change_files() -> None:
    changing = {"write_bytes", "write_text", "unlink", "mkdir", "rmdir", "open", "rename", "touch"}
    functions = {
        "os.replace",
        "os.remove",
        "shutil.rmtree",
        "os.makedirs",
        "os.write",
        "shutil.move",
    }
    for path in CODEGEN.rglob("*.py"):
        if path.name in ("writer.py", "lock.py"):
            continue
        for name, at in calls_of(path):
            if name != "os.open" or path.name != "options.py":  # which opens the null device
                assert name not in functions, at
                assert name.split(".")[-1] not in changing, at


def names_imported_by(*modules: str) -> set[str]:
    """The modules that a fresh process has after the imports."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    env = dict(os.environ, PYTHONPATH=":".join(filter(None, sys.path)))
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_whole_generator_is_imported_without_numpy_and_the_runtime() -> None:
    seen = {name.split(".")[0] for name in names_imported_by("attn_codegen.cli")}
    assert not seen & {"numpy", "attn_runtime", "pycuda", "cuda", "torch"}


@pytest.mark.parametrize("package", [CODEGEN, RUNTIME], ids=lambda path: path.name)
def test_importing_a_package_prints_nothing_and_reaches_no_gpu_library(package: Path) -> None:
    modules = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.py")
        if path.stem != "__main__"
    ]
    modules = sorted(module.removesuffix(".__init__") for module in modules)
    seen = names_imported_by(*modules)
    assert not {name.split(".")[0] for name in seen} & {"pycuda", "cuda", "torch", "cupy"}

# SPDX-License-Identifier: Apache-2.0
"""`make` says in one line what a machine lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "environment.py"
RUN = "exec(compile(open({script!r}).read(), {script!r}, 'exec'), {{'__file__': {script!r}}})"


def run_on(machine: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script in an interpreter without site packages, changed by `machine`."""
    code = f"import sys; sys.argv = ['', {str(folder)!r}, 'test']; {machine}; "
    command = [sys.executable, "-I", "-S", "-c", code + RUN.format(script=str(SCRIPT))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


WITHOUT_ENSUREPIP = (
    "import importlib.util as util; real = util.find_spec; "
    "util.find_spec = lambda name: None if name == 'ensurepip' else real(name)"
)


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (
            "sys.version_info = (3, 10, 4)",
            f"needs Python 3.11 or later: {sys.executable} is 3.10.4",
        ),
        (WITHOUT_ENSUREPIP, "needs the venv module: install python3-venv (apt-get install "),
    ],
    ids=["old Python", "no venv module"],
)
def test_what_a_machine_lacks_is_one_line(machine: str, said: str, tmp_path: Path) -> None:
    done = run_on(machine, tmp_path / "venv")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()

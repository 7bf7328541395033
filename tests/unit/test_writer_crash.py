# SPDX-License-Identifier: Apache-2.0
"""A killed emit leaves every file whole, old or new, and the next one repairs the folder."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from attn_codegen import presets, renderer, writer
from attn_codegen.lock import hold_lock
from attn_codegen.manifest import FILE_NAME
from folders import folders_of, folders_on_disk, on_disk, preset

A, B, C = preset("a", 3), preset("b", 3), preset("c", 3)
ROOTS = ":".join(sys.path)

# The calls that change a folder; a process that dies between two of them is a process that dies.
STEPS = (
    (os, "replace"),
    (os, "write"),
    (Path, "write_bytes"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (Path, "rmdir"),
)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def exit_status(pid: int) -> int:
    """The exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at_step(step: int) -> None:
    """Kill this process before its step-th change of the folder, or halfway through one write."""
    left = step

    def counted(real: Callable[..., object], halve: bool) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                if halve:
                    real(args[0], args[1][: len(args[1]) // 2])  # type: ignore[index]
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name), halve=name.startswith("write")))


def write_until_step(texts: Mapping[str, str], out: Path, step: int) -> int:
    def work() -> None:
        kill_at_step(step)
        writer.write(texts, out)

    return exit_status(in_child(work))


def assert_whole(out: Path, *versions: Mapping[str, str]) -> None:
    """Every file is one that some version has under that path, or is known to be temporary."""
    manifests = {version[FILE_NAME] for version in versions}
    for path, text in on_disk(out).items():
        if path.startswith(f"{writer.WORK_DIR}/"):
            continue
        if path.endswith(".next.json"):
            assert text in manifests, path
        else:
            assert text in {version.get(path) for version in versions}, path


def assert_repaired(out: Path, texts: Mapping[str, str]) -> None:
    assert on_disk(out) == texts
    assert folders_on_disk(out) == folders_of(texts)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "generated"


@pytest.mark.parametrize("before", [None, A], ids=["first", "upgrade"])
def test_a_kill_at_every_step_is_repaired_by_the_next_emit(
    out: Path, before: dict[str, str] | None
) -> None:
    step = 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        if before:
            writer.write(before, out)
        status = write_until_step(B, out, step)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        assert_whole(out, before or B, B)
        writer.write(B, out, wait_seconds=0)
        assert_repaired(out, B)
        step += 1
    assert step > 2 * len(B)


def test_a_kill_at_every_step_is_repaired_by_going_back(out: Path) -> None:
    step = 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        writer.write(A, out)
        if write_until_step(B, out, step) == 0:
            break
        writer.write(A, out, wait_seconds=0)
        assert_repaired(out, A)
        step += 1
    assert step > 2 * len(B)


def test_emits_killed_one_after_another_never_make_a_file_foreign(out: Path) -> None:
    """Files of any of the unfinished emits stay ours, so no later one is refused."""
    random_step = random.Random(1).randrange
    for _ in range(40):
        for texts in (B, C, A):
            status = write_until_step(texts, out, random_step(60))
            assert status in (0, -signal.SIGKILL)
            assert_whole(out, A, B, C)
    writer.write(A, out, wait_seconds=0)
    assert_repaired(out, A)


def test_processes_killed_at_random_moments_leave_files_whole(out: Path) -> None:
    """Real time instead of steps: the kill comes wherever the process is."""
    old, new = preset("a", 80), preset("b", 80)
    writer.write(old, out)
    started = time.monotonic()
    exit_status(in_child(lambda: writer.write(new, out)))
    duration = time.monotonic() - started
    random_delay = random.Random(2).uniform
    killed = 0
    for round_number in range(30):
        texts = (old, new)[round_number % 2]
        pid = in_child(lambda texts=texts: writer.write(texts, out))
        time.sleep(random_delay(0, duration))
        os.kill(pid, signal.SIGKILL)
        killed += exit_status(pid) == -signal.SIGKILL
        assert_whole(out, old, new)
    writer.write(new, out, wait_seconds=0)
    assert on_disk(out) == new
    assert killed >= 5


def test_the_command_killed_during_an_upgrade_is_repaired_by_the_next(out: Path) -> None:
    old = renderer.render(presets.preset("turbomind"))
    new = renderer.render(presets.preset("default"))
    command = [sys.executable, "-m", "attn_codegen", "emit", "--out", str(out)]
    env = dict(os.environ, PYTHONPATH=ROOTS)
    random_delay = random.Random(3).uniform
    for _ in range(5):
        writer.write(old, out)
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and not list(out.glob("manifest.*.next.json")):
            pass
        time.sleep(random_delay(0, 0.01))
        process.kill()
        process.communicate()
        assert_whole(out, old, new)
        subprocess.run(command, env=env, capture_output=True, check=True)
        assert on_disk(out) == new


def test_an_interrupted_emit_says_so_and_cleans_up(out: Path) -> None:
    """SIGINT at the first rename, as from a keyboard."""
    code = (
        "import os, signal\nfrom attn_codegen.cli import main\nreal = os.replace\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
        "def replace(*a):\n    os.kill(os.getpid(), signal.SIGINT)\n    return real(*a)\n"
        "os.replace = replace\nmain(prog_name='attn-codegen')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "emit", "--out", str(out)],
        env=dict(os.environ, PYTHONPATH=ROOTS), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.strip() == (
        "attn-codegen: error: interrupted; every file is whole, and the next run finishes the work"
    )
    assert not (out / writer.WORK_DIR).exists()
    new = renderer.render(presets.preset("default"))
    writer.write(new, out)
    assert on_disk(out) == new


def test_a_killed_holder_frees_the_lock(out: Path) -> None:
    out.mkdir()
    ready, tell = os.pipe()

    def hold() -> None:
        with hold_lock(out / writer.WORK_DIR, 0):
            os.write(tell, b"x")
            time.sleep(60)

    pid = in_child(hold)
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    assert exit_status(pid) == -signal.SIGKILL
    writer.write(A, out, wait_seconds=0)
    assert on_disk(out) == A


def test_emits_at_once_take_turns_and_leave_one_of_their_results(out: Path) -> None:
    for _ in range(5):
        pids = [in_child(lambda texts=texts: writer.write(texts, out)) for texts in (A, B, C) * 3]
        assert [exit_status(pid) for pid in pids] == [0] * len(pids)
        assert on_disk(out) in (A, B, C)


def test_commands_at_once_all_succeed(out: Path) -> None:
    env = dict(os.environ, PYTHONPATH=ROOTS)
    command = [sys.executable, "-m", "attn_codegen", "emit", "--out", str(out), "--preset"]
    running = [
        subprocess.Popen([*command, name], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in ("default", "turbomind", "default", "turbomind")
    ]
    assert [process.communicate()[1] for process in running] == [b""] * 4
    assert on_disk(out) in [
        renderer.render(presets.preset(name)) for name in ("default", "turbomind")
    ]

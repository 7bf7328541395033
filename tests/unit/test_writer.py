# SPDX-License-Identifier: Apache-2.0
"""What holds of the writer: it writes what differs, removes what it owns, and loses nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from attn_codegen import writer
from attn_codegen.errors import CodegenError, LockedError, ManifestError, OutputError
from attn_codegen.lock import hold_lock
from attn_codegen.manifest import FILE_NAME
from folders import folders_of, folders_on_disk, on_disk, preset, texts_of

A, B = preset("a"), preset("b")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "generated"


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """What changes whenever a file is written: its inode and its time."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(out.rglob("*"))
        if not path.is_dir()
    }


def refused(texts: dict[str, str], out: Path, error: type[CodegenError] = OutputError) -> str:
    """The message of a refusal that touched nothing."""
    before, seen = on_disk(out) if out.is_dir() else {}, stamps(out) if out.is_dir() else {}
    with pytest.raises(error) as caught:
        writer.write(texts, out, wait_seconds=0)
    assert (on_disk(out) if out.is_dir() else {}) == before
    assert (stamps(out) if out.is_dir() else {}) == seen
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_first_write_creates_exactly_the_texts(out: Path) -> None:
    changes = writer.write(A, out)
    assert on_disk(out) == A
    assert changes == writer.Changes(created=tuple(A))


def test_a_second_write_touches_nothing(out: Path) -> None:
    writer.write(A, out)
    before = stamps(out)
    assert writer.write(A, out) == writer.Changes(left_alone=tuple(A))
    assert stamps(out) == before


def test_an_upgrade_writes_what_differs_and_removes_what_is_no_longer_owned(out: Path) -> None:
    writer.write(A, out)
    untouched = (out / "attn/same.h").stat()
    changes = writer.write(B, out)
    assert on_disk(out) == B
    assert set(changes.created) == set(B) - set(A)
    assert set(changes.changed) == {path for path in A if path in B and A[path] != B[path]}
    assert set(changes.removed) == set(A) - set(B)
    assert changes.left_alone == ("attn/same.h",)
    assert (out / "attn/same.h").stat().st_ino == untouched.st_ino
    assert (out / "attn/same.h").stat().st_mtime_ns == untouched.st_mtime_ns


def test_folders_that_a_removal_empties_are_removed(out: Path) -> None:
    writer.write(A, out)
    writer.write(B, out)
    assert folders_on_disk(out) == folders_of(B)


def test_a_lost_file_is_written_again(out: Path) -> None:
    writer.write(A, out)
    (out / "kernels/a0.cu").unlink()
    assert writer.write(A, out).created == ("kernels/a0.cu",)
    assert on_disk(out) == A


def test_a_lost_manifest_is_written_again(out: Path) -> None:
    writer.write(A, out)
    (out / FILE_NAME).unlink()
    assert writer.write(A, out).created == (FILE_NAME,)
    assert on_disk(out) == A


def test_a_folder_with_only_dot_files_counts_as_empty(out: Path) -> None:
    out.mkdir()
    (out / ".gitkeep").touch()
    writer.write(A, out)
    assert on_disk(out) == {**A, ".gitkeep": ""}


def test_a_file_beside_ours_is_kept_through_every_write(out: Path) -> None:
    writer.write(A, out)
    (out / "kernels/mine.cu").write_text("// mine\n")
    (out / "notes.txt").write_text("mine\n")
    mine = {"kernels/mine.cu": "// mine\n", "notes.txt": "mine\n"}
    writer.write(B, out)
    assert on_disk(out) == {**B, **mine}
    writer.write(A, out, force=True)
    assert on_disk(out) == {**A, **mine}


@pytest.mark.parametrize("path", sorted(A))
def test_an_edit_by_hand_is_never_lost_without_force(out: Path, path: str) -> None:
    writer.write(A, out)
    edited = (out / path).read_text() + " "
    (out / path).write_text(edited)
    for texts in (A, B):
        said = refused(texts, out, ManifestError if path == FILE_NAME else OutputError)
        assert said.startswith(f"{out / path} was ")
        assert "edited by hand" in said
        assert "--force" in said
    assert (out / path).read_text() == edited
    writer.write(A, out, force=True)
    assert on_disk(out) == A


def test_a_value_edited_in_the_manifest_is_never_lost_without_force(out: Path) -> None:
    writer.write(A, out)
    text = (out / FILE_NAME).read_text().replace('"attn"', '"mine"')
    (out / FILE_NAME).write_text(text)
    assert "was edited by hand" in refused(A, out, ManifestError)
    writer.write(A, out, force=True)
    assert on_disk(out) == A


def test_an_edit_that_equals_the_new_text_is_no_edit(out: Path) -> None:
    writer.write(A, out)
    (out / "attn/h0.cuh").write_text(B["attn/h0.cuh"])
    writer.write(B, out)
    assert on_disk(out) == B


def test_a_file_in_our_place_that_we_never_owned_is_not_overwritten(out: Path) -> None:
    writer.write(A, out)
    (out / "kernels/b0.cu").write_text("// mine\n")
    assert f"{out / 'kernels/b0.cu'} was made or edited by hand" in refused(B, out)
    writer.write(B, out, force=True)
    assert on_disk(out) == B


def test_many_edits_are_listed_briefly(out: Path) -> None:
    writer.write(A, out)
    for path in A:
        if path != FILE_NAME:
            (out / path).write_text("// mine\n")
    said = refused(A, out)
    assert f"and {len(A) - 1 - 8} more were made or edited by hand" in said


def test_a_folder_of_other_files_is_not_written_to_without_force(out: Path) -> None:
    out.mkdir()
    (out / "main.c").write_text("int main() {}\n")
    said = refused(A, out)
    assert f"{out} was not written by attn-codegen" in said
    assert "holds main.c" in said
    writer.write(A, out, force=True)
    assert on_disk(out) == {**A, "main.c": "int main() {}\n"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"name": "a web app"}', "\0"])
def test_a_manifest_that_cannot_be_read_is_not_overwritten_without_force(
    out: Path, text: str
) -> None:
    writer.write(A, out)
    (out / FILE_NAME).write_text(text)
    assert str(out / FILE_NAME) in refused(A, out, ManifestError)
    writer.write(A, out, force=True)
    assert on_disk(out) == A


def test_a_manifest_of_a_newer_schema_is_left_alone(out: Path) -> None:
    writer.write(A, out)
    data = json.loads(A[FILE_NAME])
    (out / FILE_NAME).write_text(json.dumps(data | {"schema": 2}))
    assert "upgrade attn-codegen" in refused(A, out, ManifestError)


def test_a_manifest_that_claims_a_file_outside_never_touches_it(out: Path) -> None:
    writer.write(A, out)
    outside = out.parent / "precious.txt"
    outside.write_text("mine\n")
    claimed = texts_of({"../precious.txt": "mine\n"})[FILE_NAME]
    (out / FILE_NAME).write_text(claimed)
    assert "lies outside its folder" in refused(A, out, ManifestError)
    writer.write(A, out, force=True)
    assert outside.read_text() == "mine\n"


def test_a_link_in_place_of_a_file_is_replaced_only_with_force_and_never_followed(
    out: Path,
) -> None:
    writer.write(A, out)
    elsewhere = out.parent / "elsewhere.cu"
    elsewhere.write_text(A["kernels/a0.cu"])
    (out / "kernels/a0.cu").unlink()
    (out / "kernels/a0.cu").symlink_to(elsewhere)
    assert "was made or edited by hand" in refused(A, out)
    writer.write(A, out, force=True)
    assert not (out / "kernels/a0.cu").is_symlink()
    assert elsewhere.read_text() == A["kernels/a0.cu"]


@pytest.mark.parametrize("force", [False, True])
def test_a_linked_folder_is_never_written_through(out: Path, force: bool) -> None:
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()
    writer.write(A, out)
    shutil.rmtree(out / "kernels")
    (out / "kernels").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is a symbolic link, and emit needs a folder there"):
        writer.write(A, out, force=force)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
def test_a_file_where_a_folder_must_be_is_kept(out: Path, force: bool) -> None:
    out.mkdir()
    (out / "kernels").write_text("mine\n")
    with pytest.raises(OutputError, match="kernels"):
        writer.write(A, out, force=force)
    assert on_disk(out) == {"kernels": "mine\n"}


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_where_a_file_must_be_is_kept(out: Path, force: bool) -> None:
    writer.write(A, out)
    (out / "kernels/a0.cu").unlink()
    (out / "kernels/a0.cu").mkdir()
    with pytest.raises(OutputError, match="is not a plain file"):
        writer.write(A, out, force=force)
    assert (out / "kernels/a0.cu").is_dir()


def test_a_pipe_where_a_file_must_be_is_refused_and_not_waited_for(out: Path) -> None:
    writer.write(A, out)
    (out / "kernels/a0.cu").unlink()
    os.mkfifo(out / "kernels/a0.cu")
    with pytest.raises(OutputError, match="is not a plain file"):
        writer.write(A, out)


def test_an_output_path_that_is_a_file_is_refused(out: Path) -> None:
    out.write_text("mine\n")
    assert refused(A, out) == f"{out} is not a folder: choose a folder with --out"
    assert out.read_text() == "mine\n"


def test_an_output_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine\n")
    with pytest.raises(OutputError, match="choose another folder with --out"):
        writer.write(A, tmp_path / "file" / "generated")


def test_a_dangling_link_as_output_path_is_refused(out: Path) -> None:
    out.symlink_to(out.parent / "nowhere")
    with pytest.raises(OutputError, match="is not a folder"):
        writer.write(A, out)


def test_a_linked_output_folder_is_written(out: Path) -> None:
    target = out.parent / "target"
    target.mkdir()
    out.symlink_to(target)
    writer.write(A, out)
    assert on_disk(target) == A


@pytest.fixture
def nobody_folder() -> Iterator[Path]:
    """A folder that a plain user can reach and not write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


def write_as_plain_user(texts: dict[str, str], out: Path) -> str:
    """The message of a write by a user to whom permissions apply (root may write anything)."""
    code = (
        "import json, os, sys; from pathlib import Path; from attn_codegen import writer\n"
        "from attn_codegen.errors import OutputError\n"
        "texts = json.load(sys.stdin)\n"
        "os.geteuid() or (os.setgid(65534), os.setuid(65534))\n"
        "try: print(writer.write(texts, Path(sys.argv[1])))\n"
        "except OutputError as error: print(error)\n"
    )
    env = dict(os.environ, PYTHONPATH=":".join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        input=json.dumps(texts), env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_folder_that_cannot_be_written_is_named(nobody_folder: Path) -> None:
    nobody_folder.chmod(0o555)
    said = write_as_plain_user(A, nobody_folder)
    assert said == (
        f"cannot write {nobody_folder}: Permission denied: make it writable, or choose another "
        "folder with --out"
    )
    assert on_disk(nobody_folder) == {}


def test_a_read_only_folder_that_is_already_right_is_fine(nobody_folder: Path) -> None:
    writer.write(A, nobody_folder)
    nobody_folder.chmod(0o555)
    assert "left_alone=('a/deep/er/x.h'" in write_as_plain_user(A, nobody_folder)


def test_a_full_disk_at_any_write_loses_nothing_and_is_repaired(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a file is written before the disk is full, as a real one would leave it."""
    real, writes = Path.write_bytes, len(B)
    for failing in range(writes - 1):
        shutil.rmtree(out, ignore_errors=True)
        writer.write(A, out)
        done = 0

        def write_bytes(path: Path, data: bytes, failing: int = failing) -> int:
            nonlocal done
            done += 1
            if done > failing:
                real(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return real(path, data)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(
            OutputError, match=r"cannot write .*No space left on device: free some space"
        ):
            writer.write(B, out)
        monkeypatch.setattr(Path, "write_bytes", real)
        for path, text in on_disk(out).items():
            assert path.endswith(".next.json") or text in (A.get(path), B.get(path)), path
        assert not (out / writer.WORK_DIR).exists()
        writer.write(B, out)
        assert on_disk(out) == B


def test_check_writes_nothing_and_tells_what_a_write_would_do(out: Path) -> None:
    assert writer.check(A, out) == writer.Changes(created=tuple(A))
    assert not out.exists()
    writer.write(A, out)
    (out / "attn/h0.cuh").write_text("// mine\n")
    before = stamps(out)
    expected = writer.check(B, out)
    assert stamps(out) == before
    assert expected.edited == ("attn/h0.cuh",)
    assert set(expected.removed) == set(A) - set(B)
    assert not expected.is_current


def test_check_of_what_was_written_finds_nothing(out: Path) -> None:
    writer.write(A, out)
    assert writer.check(A, out).is_current


def test_check_reports_a_manifest_that_an_interrupted_emit_left(out: Path) -> None:
    writer.write(A, out)
    (out / "manifest.0123456789ab.next.json").write_text(B[FILE_NAME])
    assert writer.check(A, out).unfinished == ("manifest.0123456789ab.next.json",)
    assert not writer.check(A, out).is_current
    writer.write(A, out)
    assert on_disk(out) == A


def test_check_of_a_foreign_folder_is_refused(out: Path) -> None:
    out.mkdir()
    (out / "main.c").touch()
    with pytest.raises(OutputError, match="was not written by attn-codegen"):
        writer.check(A, out)


def test_a_held_lock_names_its_holder(out: Path) -> None:
    out.mkdir()
    with hold_lock(out / writer.WORK_DIR, 0), pytest.raises(LockedError) as caught:
        writer.write(A, out, wait_seconds=0.05)
    assert str(caught.value) == (
        f"{out} is being written by process {os.getpid()}: wait for it to end, then run emit again"
    )
    writer.write(A, out)
    assert on_disk(out) == A


def test_a_lock_file_that_is_removed_while_it_is_taken_is_not_a_lock(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder before removes its file between our open and our lock: we must take the next."""
    out.mkdir()
    work = out / writer.WORK_DIR
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        (work / "lock").unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold_lock(work, 1), pytest.raises(LockedError), hold_lock(work, 0):
        pass


def test_a_lock_file_that_a_killed_emit_left_does_not_block(out: Path) -> None:
    (out / writer.WORK_DIR).mkdir(parents=True)
    (out / writer.WORK_DIR / "lock").write_text("1")
    (out / writer.WORK_DIR / "x.cu.tmp").write_text("half")
    writer.write(A, out, wait_seconds=0)
    assert on_disk(out) == A


def test_a_linked_work_folder_is_refused(out: Path) -> None:
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.tmp").touch()
    out.mkdir()
    (out / writer.WORK_DIR).symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is not a folder: remove it"):
        writer.write(A, out)
    assert (elsewhere / "mine.tmp").exists()

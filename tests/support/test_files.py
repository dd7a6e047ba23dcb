"""Files that others can neither read, redirect nor lose."""

import errno
import os
import shutil
import stat

import pytest
from safetensors import SafetensorError

from fedit_app.support.errors import FedEditError
from fedit_app.support.files import (
    make_folder,
    new_folder,
    replace_file,
    write_file,
    write_private,
)


def test_a_link_at_a_guessed_temporary_name_is_not_followed(tmp_path):
    """In a folder that others can write to, they know the file's name and the process's id."""
    victim, file = tmp_path / "victim", tmp_path / "results.json"
    victim.write_text("precious")
    for name in (f".{file.name}.{os.getpid()}.tmp", f".{file.name}.tmp", f"{file.name}.tmp"):
        (tmp_path / name).symlink_to(victim)
    write_file(file, "new")
    write_private(tmp_path / "key", b"secret")
    assert (victim.read_text(), file.read_text()) == ("precious", "new")


def test_temporary_names_are_never_the_same_and_nobody_elses(tmp_path):
    names = set()
    for _ in range(20):
        with replace_file(tmp_path / "file") as temporary:
            assert temporary.stat().st_size == 0 and not temporary.is_symlink()
            names.add(temporary.name)
    assert len(names) == 20 and not list(tmp_path.glob(".*"))


def test_a_private_file_is_private_from_its_first_byte_on(tmp_path):
    before = os.umask(0)
    try:
        with replace_file(tmp_path / "key", 0o600) as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
            temporary.write_bytes(b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("make", [lambda p: write_file(p, "x"), "folder"])
def test_a_name_is_on_the_disk_once_it_is_there(tmp_path, monkeypatch, make):
    """After a power cut a file whose folder was not written is gone, though its content was."""
    synced, real = [], os.fsync

    def fsync(number):
        there = (tmp_path / "new").exists()
        synced.append((os.path.samestat(os.fstat(number), tmp_path.stat()), there))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    if make == "folder":
        with new_folder(tmp_path / "new") as folder:
            (folder / "file").write_text("x")
    else:
        make(tmp_path / "new")
    assert synced[-1] == (True, True), "the folder, after the name was in it"


def test_a_folder_made_with_its_parents_is_on_the_disk_with_all_names(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda n: synced.append(os.fstat(n).st_ino) or real(n))
    make_folder(tmp_path / "a" / "b" / "c")
    parents = (tmp_path, tmp_path / "a", tmp_path / "a" / "b")
    assert synced == [folder.stat().st_ino for folder in parents]
    make_folder(tmp_path / "a" / "b" / "c")
    assert len(synced) == 3


def test_the_files_of_a_folder_are_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, real = {}, os.fsync

    def fsync(number):
        synced.setdefault(os.fstat(number).st_ino, (tmp_path / "new").exists())
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with new_folder(tmp_path / "new") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_text("x")
    for made in (tmp_path / "new", tmp_path / "new" / "part", tmp_path / "new" / "part" / "file"):
        assert synced[made.stat().st_ino] is False


# What Python, shutil.copytree, and the libraries in Rust raise on a full disk.
FULL = [
    OSError(errno.ENOSPC, "No space left on device", "model.bin"),
    shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("replace", [False, True])
def test_a_full_disk_leaves_a_folder_as_it_was_and_is_told_in_one_line(tmp_path, error, replace):
    path = tmp_path / "edited"
    if replace:
        path.mkdir()
        (path / "old").write_text("x")
    told = "edited: cannot be written .No space left on device., and nothing was changed"
    with pytest.raises(FedEditError, match=told), new_folder(path, replace) as folder:
        (folder / "half").write_text("x")
        raise error
    assert [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*"))] == (
        ["edited", "edited/old"] if replace else []
    )


def test_another_error_while_a_folder_is_filled_is_passed_on(tmp_path):
    with pytest.raises(OSError, match="within"), new_folder(tmp_path / "edited"):
        raise OSError(errno.EIO, "within")

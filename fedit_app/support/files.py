"""Files that are either complete or absent, private files, TOML, and FedEdit's cache folder."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from fedit_app.support.errors import FedEditError

# Errors of a full or read-only disk.
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# How Python, and libraries in Rust (safetensors, tokenizers), write a system's error into a text.
_NUMBER = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")

# Ends of the names of a folder that is being filled, and of the one in whose place it goes.
_PARTS = ("tmp", "old")


def not_writable(error: Exception) -> str:
    """The system's words for a full or read-only disk, if an error comes of one; "" if not."""
    found = {getattr(error, "errno", None)}
    found |= {int(one or other) for one, other in _NUMBER.findall(str(error))}
    for number in _NOT_WRITABLE:
        if number in found:
            return os.strerror(number)
    return ""


@contextmanager
def writing(path: Path, consequence: str = "") -> Iterator[None]:
    """Name what is being written in the error of a full or read-only disk.

    Args:
        path: the file or folder.
        consequence: what follows from the error; a clause that continues the sentence, or "".

    Raises:
        FedEditError: the disk is full or read-only.
    """
    try:
        yield
    except FedEditError:
        raise
    except Exception as error:
        reason = not_writable(error)
        if not reason:
            raise
        raise FedEditError(
            f"{path}: cannot be written ({reason}){consequence}; free some space, or make the disk "
            "writable"
        ) from error


def free_bytes(path: Path) -> int:
    """The free space where a file or folder is, or would be made."""
    existing = next(part for part in (path, *path.absolute().parents) if part.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def replace_file(path: Path, mode: int = 0o666, lasting: bool = True) -> Iterator[Path]:
    """Write a file next to `path` and rename it into place if the block raises no error.

    Args:
        path: the file to create or replace; missing parent folders are made.
        mode: its permissions, less those that the umask takes away.
        lasting: whether a power cut after the block loses neither the file nor its name, for which
            the block waits for the disk.

    Yields:
        The temporary file to write to, in the same folder. It is there and empty, and its name
        cannot be guessed: in a folder that others can write to, a link of theirs is not followed.

    Raises:
        FedEditError: the disk is full or read-only; an existing file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with writing(path):
            make_folder(path.parent)
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            yield temporary
            if lasting:
                to_disk(temporary)
            temporary.replace(path)
            if lasting:
                to_disk(path.parent)
    finally:
        with suppress(OSError):  # a read-only disk refuses this as well, and holds no such file
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder with its missing parents, so that a power cut loses none of their names."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        to_disk(folder.parent)


def to_disk(path: Path) -> None:
    """Make sure that a file's content, or the names in a folder, outlive a power cut."""
    found = os.open(path, os.O_RDONLY)
    try:
        os.fsync(found)
    finally:
        os.close(found)


@contextmanager
def new_folder(
    path: Path, replace: bool = False, swap: AbstractContextManager[None] | None = None
) -> Iterator[Path]:
    """Fill a folder next to `path` and rename it into place if the block raises no error.

    Args:
        path: the folder to create; missing parent folders are made.
        replace: whether it takes the place of a folder that is there already.
        swap: is entered when the folder is complete, and left once it is in its place; what this
            raises leaves everything as it was.

    Yields:
        The temporary folder to write to; it is removed after an error.

    Raises:
        FedEditError: `path` exists already, and is not to be replaced; or the disk is full or
            read-only.
    """
    if path.exists() and not replace:
        raise FedEditError(f"{path}: exists already; name a folder that does not")
    name = f".{path.name}.{secrets.token_hex(8)}"
    temporary, former = (path.with_name(f"{name}.{end}") for end in _PARTS)
    try:
        with writing(path, ", and nothing was changed"):
            make_folder(path.parent)
            temporary.mkdir()
            yield temporary
            for part in (*temporary.rglob("*"), temporary):
                if not part.is_symlink():
                    to_disk(part)
            with swap or nullcontext():
                if path.exists():
                    path.rename(former)
                temporary.rename(path)
        to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not path.exists() and former.exists():
            former.rename(path)
        shutil.rmtree(former, ignore_errors=True)


def write_file(path: Path, content: str | bytes, mode: int = 0o666, lasting: bool = True) -> None:
    """Write a file that a reader sees either complete or not at all.

    Args:
        path: the file to create or replace; missing parent folders are made.
        content: bytes, or text, which is written as UTF-8.
        mode: its permissions, less those that the umask takes away.
        lasting: see `replace_file`.

    Raises:
        FedEditError: the disk is full or read-only; an existing file stays as it was.
    """
    with replace_file(path, mode, lasting) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON that a reader sees either complete or not at all.

    Args:
        path: the file to create or replace.
        value: anything `json` can write; NaN and infinity are refused (ValueError).
    """
    write_file(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_private(file: Path, content: bytes, replace: bool = False) -> None:
    """Write a file that only its owner can read.

    Args:
        file: the file.
        content: what goes into it.
        replace: whether an existing file is replaced.

    Raises:
        FedEditError: the file exists already.
    """
    if file.exists() and not replace:
        raise FedEditError(f"{file} exists already; keys are never overwritten")
    write_file(file, content, 0o600)


def check_private(file: Path) -> None:
    """Check that only its owner can read a private key.

    Raises:
        FedEditError: others can read it, or it is missing.
    """
    if not file.is_file():
        raise FedEditError(f"{file}: no such file")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FedEditError(f"{file}: others may read this private key; run chmod 600 {file}")


def read_toml(file: Path, place: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        file: the file.
        place: what to call it in an error.

    Raises:
        FedEditError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedEditError(f"{place}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FedEditError(f"{place}: not TOML ({error})") from None


def cache_dir() -> Path:
    """Folder of models and covariances: `$FEDIT_CACHE`, else fedit/ in the user's cache folder."""
    chosen = os.environ.get("FEDIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")).expanduser() / "fedit"

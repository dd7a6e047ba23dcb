"""Files that are either complete or absent, and the folders in which FedEdit keeps its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedit_app.support.errors import FedEditError

# What a disk says that takes nothing more.
_TAKES_NOTHING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Write a file next to `path` and rename it into place when the block ends well.

    Args:
        path: the file to create or replace; missing parent folders are made.

    Yields:
        The temporary file to write to, in the same folder.

    Raises:
        FedEditError: the disk is full or read-only; what was there before is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _TAKES_NOTHING:
            raise
        raise FedEditError(
            f"{path}: cannot be written ({error.strerror}); free some space, or make the disk "
            "writable"
        ) from error
    finally:
        with suppress(OSError):  # a read-only disk refuses this as well, and holds no such file
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder next to `path` and rename it into place when the block ends well.

    Args:
        path: the folder to create; missing parent folders are made.

    Yields:
        The temporary folder to write to; it is gone after an error.

    Raises:
        FedEditError: there is something at `path` already.
    """
    if path.exists():
        raise FedEditError(f"{path}: exists already; name a folder that does not")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON that a reader sees either complete or not at all.

    Args:
        path: the file to create or replace.
        value: anything `json` can write; NaN and infinity are refused (ValueError).
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_private(file: Path, content: bytes, replace: bool = False) -> None:
    """Write a file that only its owner can read.

    Args:
        file: the file.
        content: what goes into it.
        replace: whether a file that is there already is replaced.

    Raises:
        FedEditError: there is one already.
    """
    if file.exists() and not replace:
        raise FedEditError(f"{file} exists already; keys are never overwritten")
    with replace_file(file) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_bytes(content)


def check_private(file: Path) -> None:
    """Make sure that nobody but its owner may read a private key.

    Raises:
        FedEditError: others may, or it is missing.
    """
    if not file.is_file():
        raise FedEditError(f"{file}: no such file")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FedEditError(f"{file}: others may read this private key; run chmod 600 {file}")


def read_toml(file: Path, place: str) -> dict[str, Any]:
    """The content of a TOML file.

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
    """Folder for what can be made again (models, covariances): `$FEDIT_CACHE` or the user's."""
    chosen = os.environ.get("FEDIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")).expanduser() / "fedit"

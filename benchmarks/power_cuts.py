"""What a power cut would leave of some folders, at every step by which a process changes them.

A disk keeps what a process has written once the process has waited for it (`fsync`), and no
earlier: of a file its content, of a folder the names in it. `PowerCuts` watches a process write.
Before every call that changes the disk, or waits for it, it notes what three disks would hold then:

- one that has kept everything, as when the process alone is killed;
- one that has kept the names, and of content that was not waited for the first half;
- one that has kept nothing but what was waited for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Image = dict[str, bytes]
"""Relative path of a file -> its content."""

_CALLS = ("fsync", "replace", "rename", "unlink", "mkdir")


@dataclass
class _File:
    """A file, whatever its names; `durable` is what the disk has of it for certain."""

    durable: bytes = b""


@dataclass
class _Folder:
    """A folder; `durable` are the names that the disk has of it for certain."""

    durable: dict[str, _File | _Folder] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """A moment at which the power may fail.

    Attributes:
        call: what the process was about to do, such as "fsync index.json".
        images: what the disk may hold then; equal ones once.
    """

    call: str
    images: tuple[Image, ...]


class PowerCuts:
    """Watches what a process writes below a folder.

    Args:
        root: the folder.
        note: called at every moment at which the power may fail.
    """

    def __init__(self, root: Path, note: Callable[[Cut], None]) -> None:
        self._root, self._note = root, note
        self._known: dict[int, _File | _Folder] = {}
        self._busy = False
        self._all_durable(root)

    def _all_durable(self, folder: Path) -> _Folder:
        names: dict[str, _File | _Folder] = {}
        for path in folder.iterdir():
            if path.is_dir():
                names[path.name] = self._all_durable(path)
            else:
                names[path.name] = self._known[path.stat().st_ino] = _File(path.read_bytes())
        found = self._known[folder.stat().st_ino] = _Folder(names)
        return found

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch this process's calls inside the block."""
        real = {name: getattr(os, name) for name in _CALLS}
        for name in _CALLS:
            setattr(os, name, self._watched(name, real[name]))
        try:
            yield
        finally:
            for name in _CALLS:
                setattr(os, name, real[name])

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            path = self._inside(arguments[0])
            if path is None or self._busy:
                return real(*arguments, **options)
            self._busy = True
            try:
                self._note(Cut(f"{name} {path.name}", self._images()))
                gone = {"replace": 1, "rename": 1, "unlink": 0}.get(name)
                lost = Path(os.fsdecode(arguments[gone])) if gone is not None else None
                before = _inode(lost) if lost is not None and lost.is_file() else None
                found = real(*arguments, **options)
                if before is not None:  # the number may be given to another file
                    self._known.pop(before, None)
                if name == "fsync":
                    self._now_durable(path)
                return found
            finally:
                self._busy = False

        return call

    def _inside(self, place: Any) -> Path | None:
        """The path that a call is about, if it lies below the root."""
        if isinstance(place, int):
            place = os.readlink(f"/proc/self/fd/{place}")
        path = Path(os.fsdecode(place))
        return path if path == self._root or self._root in path.parents else None

    def _now_durable(self, path: Path) -> None:
        found = self._of(path)
        if isinstance(found, _File):
            found.durable = path.read_bytes()
        else:
            found.durable = {part.name: self._of(part) for part in path.iterdir()}

    def _of(self, path: Path) -> _File | _Folder:
        kind = _Folder if path.is_dir() else _File
        known = self._known.get(_inode(path))
        if not isinstance(known, kind):
            known = self._known[_inode(path)] = kind()
        return known

    def _images(self) -> tuple[Image, ...]:
        files = [path for path in self._root.rglob("*") if path.is_file()]
        kept = {str(path.relative_to(self._root)): path.read_bytes() for path in files}
        torn = {}
        for path, (name, content) in zip(files, kept.items(), strict=True):
            known = self._of(path)
            sure = known.durable if isinstance(known, _File) else b""
            torn[name] = content if content == sure else content[: (len(sure) + len(content)) // 2]
        found: list[Image] = []
        for image in (kept, torn, dict(_durable(self._of(self._root)))):
            if image not in found:
                found.append(image)
        return tuple(found)


def _durable(found: _File | _Folder, place: str = "") -> Iterator[tuple[str, bytes]]:
    if isinstance(found, _File):
        yield place, found.durable
        return
    for name, part in found.durable.items():
        yield from _durable(part, f"{place}/{name}" if place else name)


def _inode(path: Path) -> int:
    return path.stat().st_ino


def written(image: Image, folder: Path) -> Path:
    """A folder with the files of an image."""
    for name, content in image.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder

"""The checks of `fedit doctor` on any machine: versions, disk, memory, GPUs."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedit_app.support.errors import FedEditError
from fedit_app.support.files import cache_dir, free_bytes
from fedit_app.support.processes import cores

OK, WARN, FAIL = "ok", "warn", "FAIL"
GIGABYTE = 1e9
_SHOWN = ("flwr", "torch", "transformers", "lancedb")
_LITTLE_DISK, _HARDLY_DISK = 5.0, 0.5  # GB


@dataclass(frozen=True)
class Finding:
    """One row of `fedit doctor`.

    Attributes:
        level: OK, WARN or FAIL.
        topic: the subject of the check.
        text: the state found and, unless it is ok, the remedy.
    """

    level: str
    topic: str
    text: str


Check = Callable[[], Iterable[Finding]]


def attempt(topic: str, check: Check) -> list[Finding]:
    """Run a check; a FedEditError that it raises becomes a finding.

    Args:
        topic: the subject of the check.
        check: returns findings.
    """
    findings: list[Finding] = []
    try:
        for finding in check():
            findings.append(finding)
    except FedEditError as error:
        findings.append(Finding(FAIL, topic, str(error)))
    return findings


def machine(folder: Path | None) -> list[Finding]:
    """Versions, disk, memory and GPUs.

    Args:
        folder: folder of the server or node, to check its disk; None for the cache's disk alone.
    """
    return [
        *attempt("versions", _versions),
        *(disk(place) for place in dict.fromkeys([*([folder] if folder else []), cache_dir()])),
        memory(),
        *_gpus(),
    ]


def _versions() -> Iterable[Finding]:
    """Python and the required packages against the ranges that this FedEdit was installed with."""
    about = importlib.metadata.metadata("fedit")
    python = platform.python_version()
    if not SpecifierSet(about["Requires-Python"] or "").contains(python, prereleases=True):
        yield Finding(FAIL, "versions", f"python {python}; required is {about['Requires-Python']}")
    for text in importlib.metadata.requires("fedit") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or not wanted.specifier.contains(found, prereleases=True):
            told = f"{wanted.name} {found}; required is {wanted.specifier}: pip install '{wanted}'"
            yield Finding(FAIL, "versions", told)
    installed = {name: importlib.metadata.version(name) for name in _SHOWN}
    shown = ", ".join(f"{name} {version}" for name, version in installed.items())
    yield Finding(OK, "versions", f"fedit {about['Version']}, python {python}, {shown}")


def disk(folder: Path) -> Finding:
    """Free space where a folder is, or will be."""
    free = free_bytes(folder) / GIGABYTE
    text = f"{free:.1f} GB free for {folder}"
    if free < _HARDLY_DISK:
        return Finding(FAIL, "disk", f"{text}; free some space, or writing will fail soon")
    if free < _LITTLE_DISK:
        return Finding(WARN, "disk", f"{text}; models, covariances and ledgers need more")
    return Finding(OK, "disk", text)


def memory() -> Finding:
    """Memory and processor cores."""
    found = psutil.virtual_memory()
    text = (
        f"{found.available / GIGABYTE:.1f} of {found.total / GIGABYTE:.1f} GB free, "
        f"{cores()} processor cores"
    )
    return Finding(OK, "memory", text)


def _gpus() -> Iterable[Finding]:
    if not torch.cuda.is_available():
        yield Finding(OK, "gpu", "no CUDA device; edits run on the processor")
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        text = f"cuda:{number} {name}, {free / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB free"
        yield Finding(OK, "gpu", text)

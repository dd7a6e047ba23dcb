"""How wide a sketch has to be to rank as the vectors do, and what it tells a server.

MKVs of CounterFact records are sketched in several widths, with several keys, and compared with
what their vectors say: the cosines, what clients would be served, which requests would be looked
up, which MKVs count as one fact. Then a server tries to find out whose subjects it holds, among
the subjects of more records, which it can put to the base model itself:

- blind: it has no key, and sketches the candidates with one of its own (chance is 1 / candidates);
- shape: it knows the very set of subjects, not which is which, and compares sorted cosines;
- known: it knows the subjects of some of the MKVs, and learns from them by least squares how
  sketches come from keys;
- key: it has the federation key, from a node that betrays the others.

In the row "full" nothing is sketched, as in a run that is not sealed.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.harness import (
    Figures,
    benchmark,
    count,
    counts,
    loaded,
    main,
    paraphrase,
    print_figures,
    records,
    workbench,
)
from fedit_app.editing.workbench import Workbench
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.same_key import SameFact
from fedit_app.mkv.sealer import Sealer
from fedit_app.mkv.similarity import unit_rows
from fedit_app.mkv.sketch import Sketcher
from fedit_app.mkv.wire import to_bytes
from fedit_app.pool import SelectionConfig, SignatureBlock, select
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_CLIENTS = 3
_LOOKUP = 0.8
_TOP = 10
_RIDGE = 0.01
_SELECTIONS = {"v_star": False, "delta": True}  # kind -> centred
_KNOWN = (4, 16, 64)
Project = Callable[[str, np.ndarray], np.ndarray]


@benchmark(
    count("--records", 300, "looked up"),
    count("--edits", 150, "MKVs"),
    count("--again", 40, "of them once more in other words, for other targets, on another ledger"),
    count("--candidates", 1000, "subjects to guess from"),
    counts("--widths", [32, 64, 128, 256, 512], "of sketches"),
    count("--keys", 5, "to average over"),
)
def run(options: argparse.Namespace) -> Figures:
    """Print the two tables: what a width ranks like, and what it tells."""
    sizes = (options.again, options.edits, options.records, options.candidates)
    if list(sizes) != sorted(sizes):
        raise FedEditError(
            "--again {} --edits {} --records {} --candidates {}: none may be more than the "
            "next".format(*sizes)
        )
    everything = records(options, options.candidates)
    bench = workbench(loaded(options))
    measured = _Measured(bench, everything, *sizes[:3])
    figures: Figures = {}
    names = [*map(str, options.widths), "full"]
    for name, width in zip(names, [*options.widths, None], strict=True):
        found = [measured.figures(width, number) for number in range(options.keys if width else 1)]
        mean = {part: float(np.mean([one[part] for one in found])) for part in found[0]}
        mean["bytes_per_mkv"] = measured.size(width)
        figures |= {f"sketch/{name}/{part}": value for part, value in mean.items()}
        logger.info("width %s done", name)
    lines = {name: f"sketch/{name}" for name in names}
    print_figures(f"{options.edits} MKVs", _AGREEMENT, figures, lines)
    print()
    print_figures(f"{options.records} among {options.candidates}", _GUESSES, figures, lines)
    return figures


_AGREEMENT = {
    "bytes/MKV": "bytes_per_mkv",
    "cosine error": "cosine_error",
    "near 1": "cosine_error_near_1",
    **{f"{kind} top-{_TOP}": f"{kind}_top_overlap" for kind in _SELECTIONS},
    **{f"{kind} majority": f"{kind}_majority_agreement" for kind in _SELECTIONS},
    "lookup recall": "lookup_recall",
    "others": "lookup_others_per_request",
    "same fact": "same_fact_agreement",
}
_GUESSES = {
    "blind": "guessed_blind",
    "shape": "guessed_by_shape",
    **{f"{count} known": f"guessed_from_{count}" for count in _KNOWN},
    "key": "guessed_with_key",
    "key, other words": "guessed_with_key_in_other_words",
}


class _Measured:
    """The vectors of real MKVs and requests, computed once, and what sketches make of them."""

    def __init__(
        self,
        bench: Workbench,
        requests: Sequence[EditRequest],
        again: int,
        edits: int,
        count: int,
    ) -> None:
        self._bench, self._count = bench, count
        own, twice = requests[:edits], requests[:again]
        self._mkvs = self._computed(own)
        others = [paraphrase(request) or request for request in twice]
        rivals = [
            dataclasses.replace(request, target_new=other.target_new)
            for request, other in zip(twice, own[-again:], strict=True)
        ]
        self._pairs = [
            (mkv, other)
            for found in (self._computed(others), self._computed(rivals))
            for mkv, other in zip(self._mkvs, found, strict=False)
        ]
        half = Ledger(bench.fingerprint)
        half.accept(self._mkvs[edits // 2 :], 1)
        self._pairs += zip(self._mkvs, bench.compute(twice, half, "elsewhere", 1), strict=False)
        self._candidates = self._keys(requests)
        self._loosely = self._keys(
            [dataclasses.replace(request, prompt="{} is a") for request in requests]
        )
        found = [(i, p) for i, request in enumerate(requests[:count]) if (p := paraphrase(request))]
        self._twins = [i for i, _ in found]
        self._paraphrased = self._keys([paraphrase for _, paraphrase in found])

    def _computed(self, requests: Sequence[EditRequest]) -> list[MKV]:
        empty = Ledger(self._bench.fingerprint)
        return self._bench.compute(requests, empty, "benchmark", 1)

    def _keys(self, requests: Sequence[EditRequest]) -> np.ndarray:
        return self._bench.lookup_keys(requests).numpy()

    def size(self, width: int | None) -> int:
        """Mean bytes of an MKV in the pool's payload; open if there is no width."""
        if width is None:
            return round(np.mean([len(to_bytes(mkv)) for mkv in self._mkvs]))
        inner = self._bench.fingerprint
        sealed = Sealer(FederationKey.new(), "f" * len(inner), inner, width).seal(self._mkvs)
        return round(np.mean([len(to_bytes(one)) for one in sealed]))

    def figures(self, width: int | None, seed: int) -> dict[str, float]:
        """Agreement and guesses of one key.

        Args:
            width: of its sketches; None for the vectors themselves.
            seed: which key; the same one for every width.
        """
        sketch: Project = _unit
        if width is not None:
            sketch = Sketcher(f"benchmark {seed}".encode(), width).sketch
        return self._agreement(sketch) | self._guesses(sketch)

    def _agreement(self, sketch: Project) -> dict[str, float]:
        errors, near = [], []
        for kind in _SELECTIONS:
            exact, found = (_cosines(project, kind, self._mkvs) for project in (_unit, sketch))
            errors.append(np.abs(exact - found)[np.triu_indices(len(exact), 1)])
        for one, other in self._pairs:
            exact, found = (
                _cosines(project, "key", [one, other])[0, 1] for project in (_unit, sketch)
            )
            if exact > 0.95:
                near.append(abs(exact - found))
        result = {
            "cosine_error": float(np.concatenate(errors).mean()),
            "cosine_error_near_1": float(np.mean(near)) if near else 0.0,
        }
        for kind, centred in _SELECTIONS.items():
            top = [self._selected(p, "top-k", kind, centred) for p in (_unit, sketch)]
            result[f"{kind}_top_overlap"] = float(
                np.mean([len(a & b) / max(1, len(a)) for a, b in zip(*top, strict=True)])
            )
            taken = [self._selected(p, "majority", kind, centred) for p in (_unit, sketch)]
            others = len(self._mkvs) * (_CLIENTS - 1) / _CLIENTS
            result[f"{kind}_majority_agreement"] = 1 - float(
                np.mean([len(a ^ b) / others for a, b in zip(*taken, strict=True)])
            )
        cosines = (
            sketch("key", self._paraphrased).astype(float)
            @ sketch("key", self._candidates[: self._count]).astype(float).T
        )
        hits = cosines >= _LOOKUP
        right = hits[np.arange(len(hits)), self._twins]
        result["lookup_recall"] = float(right.mean())
        result["lookup_others_per_request"] = float((hits.sum(axis=1) - right).mean())
        decisions = [[_same(project, *pair) for pair in self._pairs] for project in (_unit, sketch)]
        result["same_fact_agreement"] = float(np.equal(decisions[0], decisions[1]).mean())
        return result

    def _selected(self, sketch: Project, policy: str, kind: str, centred: bool) -> list[set[str]]:
        """Per client what of the others it would be served."""
        vectors = sketch(kind, np.array([mkv.signature(kind) for mkv in self._mkvs]))
        ids = [mkv.id for mkv in self._mkvs]
        block = SignatureBlock(ids, ["-"] * len(ids), [1] * len(ids), unit_rows(vectors))
        config = SelectionConfig(policy, kind, centred, 0.4, _TOP)
        own = {str(n): vectors[n::_CLIENTS] for n in range(_CLIENTS)}
        held = {str(n): set(ids[n::_CLIENTS]) for n in range(_CLIENTS)}
        ranked = select(own, lambda: [block], config, held)
        return [{one.id for one in ranked[name]} for name in own]

    def _guesses(self, sketch: Project) -> dict[str, float]:
        """How often the right subject is the first of all candidates."""
        count = self._count
        seen = sketch("key", self._candidates[:count]).astype(float)
        plain, loose = _unit("key", self._candidates), _unit("key", self._loosely)
        between, among = seen @ seen.T, plain @ plain.T
        result = {
            "guessed_with_key": _hits(seen @ sketch("key", self._candidates).astype(float).T),
            "guessed_with_key_in_other_words": _hits(seen @ sketch("key", loose).astype(float).T),
            "guessed_by_shape": _hits(
                -_distances(np.sort(between, axis=1), np.sort(among[:count, :count], axis=1))
            ),
        }
        if sketch is not _unit:
            own_key = Sketcher(secrets.token_bytes(32), seen.shape[1])
            blind = own_key.sketch("key", self._candidates).astype(float)
            result["guessed_blind"] = _hits(seen @ blind.T)
        for known in _KNOWN:
            if known < count:
                found = _from_known(seen, plain, known)
                result[f"guessed_from_{known}"] = _hits(found, known)
        return result


def _unit(kind: str, vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _cosines(project: Project, kind: str, mkvs: Sequence[MKV]) -> np.ndarray:
    rows = project(kind, np.array([mkv.signature(kind) for mkv in mkvs])).astype(float)
    return rows @ rows.T


def _same(project: Project, one: MKV, other: MKV) -> bool:
    """What `same_fact` says of two MKVs, or of their sketches."""
    same = SameFact()
    parts: Mapping[str, float] = {
        "key": same.same_key,
        "delta": same.same_value,
        "shifts": same.same_shifts,
    }
    pairs = zip(one.fact_vectors, other.fact_vectors, parts.items(), strict=True)
    for a, b, (kind, least) in pairs:
        rows = project(kind, np.stack([a, b])).astype(float)
        if rows[0] @ rows[1] < least:
            return False
    return True


def _from_known(seen: np.ndarray, plain: np.ndarray, known: int) -> np.ndarray:
    """Cosines of unknown sketches with what the known pairs let expect of every candidate.

    Args:
        seen: sketches, the known ones first.
        plain: keys of the candidates, in the same order.
        known: how many are.
    """
    keys, sketches = plain - plain[:known].mean(axis=0), seen - seen[:known].mean(axis=0)
    products = keys @ keys[:known].T
    weights = np.linalg.solve(products[:known] + _RIDGE * np.eye(known), sketches[:known])
    expected = products @ weights
    return _unit("key", sketches[known:]) @ _unit("key", expected).T


def _hits(scores: np.ndarray, first: int = 0) -> float:
    """Share of rows whose best column is their own: row i belongs to column i + `first`."""
    return float((scores.argmax(axis=1) == first + np.arange(len(scores))).mean())


def _distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    squares = (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    return squares - 2 * rows @ others.T


if __name__ == "__main__":
    main(run)

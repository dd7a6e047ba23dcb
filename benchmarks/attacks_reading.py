"""Reading MKVs: what an attacker with the same model recovers of target and subject."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.workbench import Workbench
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.mkv import MKV, create
from fedit_app.mkv.sketch import Sketcher
from fedit_app.models.partial import projection_inputs, trace
from fedit_app.models.tokens import pad

_PLACE = "Here is the thing"
_SUFFIXES = ("", " is", " is in", " was", " of", " speaks", " is a", " plays", " works for", ",")
_PER_PASS = 64
_START = " the the the"
_TRIED_PER_STEP = 24


@dataclass(frozen=True)
class Seen:
    """What an attacker sees of one MKV.

    Attributes:
        value: (d_model,) v*, if it is seen.
        key: what stands for the lookup key, if anything does.
        project: what the attacker does to keys of his own, (n, d_ff), to compare them with it.
    """

    value: np.ndarray | None
    key: np.ndarray | None
    project: Callable[[Tensor], Tensor] = lambda keys: keys


@dataclass(frozen=True)
class Defence:
    """What is done to MKVs, and what can be seen of them then.

    Attributes:
        precision: to which they are rounded.
        seen: from the defended MKV to what the attacker sees.
    """

    precision: str = "float32"
    seen: Callable[[MKV], Seen] = lambda mkv: Seen(mkv.v_star, mkv.lookup_key)


def _sketched(author: str, attacker: str) -> Callable[[MKV], Seen]:
    """What a server sees of sealed MKVs: the sketch of the lookup key, and no value.

    Args:
        author: secret of the nodes' sketches.
        attacker: secret with which the attacker sketches keys of his own.
    """
    width = RunConfig().sketch_width
    own, tried = (Sketcher(secret.encode(), width) for secret in (author, attacker))

    @functools.cache
    def signs(d_ff: int) -> Tensor:
        """(d_ff, width) the projection to scale: the sketches of unit vectors."""
        return torch.from_numpy(tried.sketch("key", np.eye(d_ff)))

    def projected(keys: Tensor) -> Tensor:
        return keys @ signs(keys.shape[-1]).to(keys)

    return lambda mkv: Seen(None, own.sketch("key", mkv.lookup_key[None])[0], projected)


DEFENCES = {
    "none": Defence(),
    "int8": Defence("int8"),
    "sealed": Defence("int8", seen=_sketched("the federation's", "another")),
    "sealed, key betrayed": Defence("int8", seen=_sketched("the federation's", "the federation's")),
}
"""Name -> defence. "sealed" is what a server sees, and its key what only nodes hold; clients, and
servers of runs that are not sealed, see whole MKVs under all of the others."""


def defended(defence: Defence, mkvs: Sequence[MKV]) -> list[MKV]:
    """MKVs as their author would have made them under a defence.

    Args:
        defence: one of `DEFENCES`.
        mkvs: n >= 1 exact MKVs.
    """
    return [
        create(
            *(mkv.node, mkv.slot, mkv.fingerprint),
            *(mkv.keys, mkv.shifts, mkv.v_star, mkv.h0),
            precision=defence.precision,
        )
        for mkv in mkvs
    ]


def distinct_subjects(own: Iterable[str], listed: Iterable[str], count: int) -> list[str]:
    """Candidate subjects: those of the MKVs, which an attacker's list has, and others.

    Args:
        own: subjects of the MKVs.
        listed: further subjects.
        count: how many, at least as many as `own` has.
    """
    found = dict.fromkeys(own)
    for subject in listed:
        if len(found) >= count:
            break
        if subject.strip():
            found.setdefault(subject.strip())
    return list(found)


class Reader:
    """An attacker who has the model, the contexts and a list of subjects, but no prompt.

    Args:
        bench: the model and its tools.
        requests: n requests behind the MKVs, to tell what was recovered.
        subjects: candidate subjects, with those of the requests.
        searched: for how many MKVs tokens are searched.
        steps: steps of that search.
    """

    def __init__(
        self,
        bench: Workbench,
        requests: Sequence[EditRequest],
        subjects: Sequence[str],
        searched: int,
        steps: int,
    ) -> None:
        self._bench, self._requests = bench, requests
        self._searched, self._steps = searched, steps
        asked = [EditRequest(str(i), subject, SLOT, "a") for i, subject in enumerate(subjects)]
        parts = [asked[i : i + _PER_PASS] for i in range(0, len(asked), _PER_PASS)]
        self._keys = torch.cat([bench.lookup_keys(part) for part in parts])
        place = {subject: number for number, subject in enumerate(subjects)}
        self._subjects = torch.tensor([place[request.subject] for request in requests])
        tokenizer = bench.model.tokenizer
        texts = [f" {request.target_new}" for request in requests]
        first = [tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts]
        self._targets = torch.tensor(first)

    def read(self, seen: Sequence[Seen]) -> dict[str, float | None]:
        """What is recovered: shares `target 1`, `target 10`, `subject 1`, ... and `tokens`."""
        return self.ranked(seen) | {"tokens": self._tokens(seen)}

    def ranked(self, seen: Sequence[Seen]) -> dict[str, float | None]:
        """The same without the search over tokens."""
        ranks = {"target": self.target_ranks(seen), "subject": self._subject_ranks(seen)}
        found: dict[str, float | None] = {}
        for name, rank in ranks.items():
            for most in (1, 10):
                hit = None if rank is None else float((rank < most).double().mean())
                found[f"{name} {most}"] = hit
        return found

    @torch.no_grad()
    def target_ranks(self, seen: Sequence[Seen]) -> Tensor | None:
        """(n,) place of the target's first token among all tokens, by how much v* makes it likelier
        behind generic words."""
        if any(one.value is None for one in seen):
            return None
        model, layer = self._bench.model, self._bench.settings.layers[-1]
        rows = [model.tokenizer(_PLACE + suffix)["input_ids"] for suffix in _SUFFIXES]
        at = len(model.tokenizer(_PLACE)["input_ids"]) - 1
        ids, mask = (part.to(model.device) for part in pad(rows, model.pad_token_id))
        ends = mask.sum(1) - 1
        last = model.n_layers - 1
        given = {"input_ids": ids, "attention_mask": mask}
        upper = trace(model, layer + 1, last, given, dry=True)
        numbers = torch.arange(len(rows), device=model.device)

        def spoken(values: Tensor | None) -> Tensor:
            count = 1 if values is None else len(values)
            part = upper.select(numbers.repeat(count))
            hidden = part.hidden.clone()
            if values is not None:
                hidden[:, at] = values.to(hidden).repeat_interleave(len(rows), 0)
            final = part.run(hidden, layer + 1, last)
            final = final[torch.arange(len(final), device=final.device), ends.repeat(count)]
            likely = model.log_probabilities(final).exp()
            return likely.view(count, len(rows), -1).mean(1).cpu()

        usual = spoken(None)
        ranks = []
        for begin in range(0, len(seen), 8):
            values = torch.cat([_row(one.value) for one in seen[begin : begin + 8]])
            gain = spoken(values) - usual
            wanted = gain.gather(1, self._targets[begin : begin + 8, None])
            ranks.append((gain > wanted).sum(1))
        return torch.cat(ranks)

    def _subject_ranks(self, seen: Sequence[Seen]) -> Tensor | None:
        """(n,) place of the subject among the candidates, by cosine of keys."""
        if any(one.key is None for one in seen):
            return None
        cosines = torch.stack(
            [
                torch.cosine_similarity(one.project(self._keys), _row(one.key).double())
                for one in seen
            ]
        )
        wanted = cosines.gather(1, self._subjects[:, None])
        return (cosines > wanted).sum(1)

    def _tokens(self, seen: Sequence[Seen]) -> float | None:
        """Mean share of the subjects' tokens among those that the search ends with."""
        if any(one.key is None for one in seen):
            return None
        shares = []
        pairs = list(zip(self._requests, seen, strict=True))[: self._searched]
        for request, one in pairs:
            text = f" {request.subject}"
            wanted = set(self._bench.model.tokenizer(text, add_special_tokens=False)["input_ids"])
            shares.append(len(wanted & set(self._search(one))) / len(wanted))
        return sum(shares) / len(shares)

    def _search(self, seen: Seen) -> list[int]:
        """Tokens whose key is like the one seen: of the exchanges of one token that the gradient
        promises most of, the best is taken, step by step (HotFlip, arXiv 1712.06751)."""
        model = self._bench.model
        table = model.model.get_input_embeddings().weight.detach()
        generator = torch.Generator().manual_seed(0)
        tokens = torch.tensor(model.tokenizer(_START, add_special_tokens=False)["input_ids"])
        best = -1.0
        for _ in range(self._steps):
            embedded = table[tokens.to(table.device)][None].clone().requires_grad_()
            self._likeness(embedded, seen).sum().backward()
            promise = embedded.grad[0] @ table.T
            likely = promise.topk(_TRIED_PER_STEP, dim=1).indices.cpu()
            place = torch.randint(len(tokens), (_TRIED_PER_STEP,), generator=generator)
            trials = tokens.repeat(_TRIED_PER_STEP, 1)
            choice = torch.randint(_TRIED_PER_STEP, (_TRIED_PER_STEP,), generator=generator)
            trials[torch.arange(_TRIED_PER_STEP), place] = likely[place, choice]
            with torch.no_grad():
                cosines = self._likeness(table[trials.to(table.device)], seen)
            if float(cosines.max()) > best:
                best, tokens = float(cosines.max()), trials[int(cosines.argmax())]
        return tokens.tolist()

    def _likeness(self, embedded: Tensor, seen: Seen) -> Tensor:
        """(n,) cosines of the key behind some embeddings (n, tokens, d_model) with the one seen."""
        model, first = self._bench.model, self._bench.settings.layers[0]
        mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
        with projection_inputs(model, [first]) as keys:
            given = {"inputs_embeds": embedded, "attention_mask": mask}
            trace(model, first, first, given)
        found = keys[first][:, -1]
        return torch.cosine_similarity(seen.project(found), _row(seen.key).to(found))


def _row(vector: np.ndarray | None) -> Tensor:
    """(1, width) a vector that is known to be seen."""
    return torch.from_numpy(np.asarray(vector))[None]

"""What figures are called, and what they mean in plain words."""

import re
from collections.abc import Iterable, Mapping

from pydantic import BaseModel

from fedit_app.protocol.metrics import (
    FIGURES,
    SCORE_PARTS,
    Metric,
    Metrics,
    Neutral,
    SharedSubject,
)
from fedit_app.report.results import SCOPES, Results
from fedit_app.support.errors import FedEditError, shown
from fedit_app.support.formats import listing, plural

SHARES = (*SCORE_PARTS, "score", "other_relations", "subject_fidelity", "accuracy")
"""The figures that tables have a column for."""
FURTHER = {
    "portability": "Portability",
    "reversal": "Reversal",
    "exact_match": "Exact match",
    "wild_match": "WILD match",
    "chat_match": "Chat match",
    "paraphrase_chat_match": "Chat match, paraphrase",
    "generation_entropy": "Entropy, bits",
    "magnitude": "Magnitude",
    "paraphrase_magnitude": "Magnitude, paraphrase",
    "neighborhood_magnitude": "Magnitude, neighborhood",
    "paraphrase_accuracy": "Accuracy, paraphrase",
    "neighborhood_accuracy": "Accuracy, neighborhood",
}
"""What tables call the figures beside the shares."""

_LIKELIHOOD = (
    "Efficacy and paraphrase: prompts after which the new target is likelier than the true one. "
    "Neighborhood: prompts about other subjects after which the true target still is the likelier."
)
_TOKENS = (
    "Efficacy, paraphrase and neighborhood: tokens of the wanted answer that are the model's first "
    "choice, given the ones before."
)
METRICS: dict[Metric, str] = {
    "likelihood": _LIKELIHOOD,
    "tokens": _TOKENS,
    "mixed": f"Where a true target is known: {_LIKELIHOOD} Elsewhere: {_TOKENS}",
}
"""What the shares mean, by how they are counted."""


def words(figure: str) -> str:
    """What tables call a figure: "other_relations" -> "other relations"."""
    return re.sub(r"[._]", " ", figure)


def value_of(metrics: Metrics | None, figure: str) -> float | None:
    """One figure of metrics; None where the metrics or the figure were not measured."""
    return None if metrics is None else metrics.value(figure)


def check_figures(names: Iterable[str], option: str) -> None:
    """Check the names of figures, see `comparison.Row.figure`.

    Args:
        names: the names.
        option: where they come from, for the message.

    Raises:
        FedEditError: `results.json` has no such figure.
    """
    known = {"neutral": [*Neutral.model_fields]}
    for scope in SCOPES:
        known[scope] = [*FIGURES, "count"]
        known[f"{scope}.shared_subject"] = [*SharedSubject.model_fields, "accuracy"]
    for name in names:
        scope, _, figure = name.rpartition(".")
        scope = scope or "federation"
        if scope not in known:
            raise FedEditError(
                f"{option}: {shown(name)}: no such scope; there are {listing([*known])}"
            )
        if figure not in known[scope]:
            raise FedEditError(
                f"{option}: {shown(name)}: no such figure; {scope} has {listing(known[scope])}"
            )


def metric_of(metrics: Metrics | None) -> Metric:
    """How shares are counted; where nothing was measured, as for most data."""
    return "likelihood" if metrics is None else metrics.metric


def hold_lines(results: Results) -> list[str]:
    """How many facts hold, of all and of those that share a subject with others, in words."""
    of_nodes = [node.own for node in results.nodes.values() if node.own is not None]
    counts = [(m.count, m.accuracy) for m in of_nodes if m.accuracy is not None]
    lines = []
    if counts:
        held = sum(round(count * accuracy) for count, accuracy in counts)
        lines.append(f"{held:,} of {plural(sum(n for n, _ in counts), 'own fact')} hold")
    summary = results.summary
    if lines and summary.own is not None:
        lines[-1] += _of_a_sample(summary.own)
    own, everybody = _shared(summary.own), _shared(summary.federation)
    if own is not None:
        share, hold = ("shares", "holds") if own.count == 1 else ("share", "hold")
        facts = plural(own.count, "own fact")
        lines.append(f"{facts} {share} a subject with others: {own.hold:,} {hold}")
    if everybody is not None:
        lines.append(
            "the federation's facts that share a subject, asked of every node: "
            f"{everybody.hold:,} of {everybody.count:,} hold"
        )
    everywhere = [node.federation for node in results.nodes.values() if node.federation is not None]
    # The nodes are asked the same ones, so that a mean over nodes is no more certain.
    widest = max(everywhere, key=lambda found: found.uncertainty, default=None)
    if widest is not None and widest.drawn_from:
        asked = f"of the federation's facts a node was asked {widest.count:,}"
        lines.append(asked + _of_a_sample(widest))
    return lines


def _of_a_sample(found: Metrics) -> str:
    if not found.drawn_from:
        return ""
    return f", a sample of {found.drawn_from:,}: shares are within {found.uncertainty:.2f} (95 %)"


def _shared(metrics: Metrics | None) -> SharedSubject | None:
    return None if metrics is None else metrics.shared_subject


def figures_by_scope(measured: Mapping[str, BaseModel | None]) -> dict[str, dict[str, object]]:
    """Scope -> figure -> value; facts that share a subject are a scope, `own.shared_subject`.

    Args:
        measured: scope -> what was measured there; None: nothing.
    """
    scopes: dict[str, dict[str, object]] = {}
    for scope, part in measured.items():
        if part is not None:
            figures = part.model_dump()
            shared = figures.pop("shared_subject", None)
            figures.pop("drawn_from", None)
            scopes[scope] = figures
            if shared is not None:
                scopes[f"{scope}.shared_subject"] = shared
    return scopes

"""What an edit of one model has achieved."""

from __future__ import annotations

from dataclasses import dataclass

from fedit_app.evaluation.scores import TargetScore
from fedit_app.facts.request import EditRequest
from fedit_app.protocol.metrics import Metrics, Neutral
from fedit_app.support.formats import plural
from fedit_app.support.tables import Shown, Table


@dataclass(frozen=True)
class EditedFact:
    """One request and what has become of it.

    Attributes:
        request: the request.
        mkv: id of the MKV in the ledger that fulfils it.
        before: the target's score on the unedited model: `probability`, and `decoded`, whether
            every token of the target is the likeliest one after the prompt.
        after: the same on the edited model.
    """

    request: EditRequest
    mkv: str
    before: TargetScore
    after: TargetScore


@dataclass(frozen=True)
class EditReport:
    """What `Editor.edit` has achieved. `print` shows it as a table.

    Attributes:
        facts: one per request, in their order.
    """

    facts: tuple[EditedFact, ...]

    @property
    def decoded(self) -> int:
        """How many of the targets the edited model says now."""
        return sum(fact.after.decoded for fact in self.facts)

    @property
    def said(self) -> str:
        """How many facts are decoded, in words."""
        return f"{self.decoded} of {plural(len(self.facts), 'fact')} decoded"

    def table(self) -> Table:
        """The probability of every target before and after, and whether it is decoded."""
        columns = ("request", "target", "before", "after", "decoded")
        rows = [
            (
                fact.request.id,
                fact.request.target_new,
                Shown(fact.before.probability, f"{fact.before.probability:.1%}"),
                Shown(fact.after.probability, f"{fact.after.probability:.1%}"),
                fact.after.decoded,
            )
            for fact in self.facts
        ]
        return Table(columns, rows)

    def __str__(self) -> str:
        return f"{self.said}\n\n{self.table().text()}"


@dataclass(frozen=True)
class Measured:
    """The edited model beside the unedited one.

    Attributes:
        before: metrics of the unedited model on some requests.
        after: the same of the edited model.
        neutral: what the edits change in text that no request is about.
    """

    before: Metrics
    after: Metrics
    neutral: Neutral

from html import unescape

import pytest
from inprocess import NO_PLOTS

from fedit_app.protocol.metrics import SharedSubject
from fedit_app.report import Results, html, render_report, runs_table, summary_table


@pytest.fixture(autouse=True)
def _nothing_is_drawn(monkeypatch):
    monkeypatch.setattr(html, "_run_plots", lambda results: NO_PLOTS)


def test_summary_table(sample):
    lines = summary_table(sample("completed")).splitlines()
    assert lines[0].startswith("completed: fedit with memit on HuggingFaceTB/SmolLM2")
    rows = {line.split()[0]: line.split() for line in lines if "->" in line and ":" not in line}
    assert list(rows) == ["clinic-north", "library", "museum", "mean"]
    assert rows["museum"][1:] == (
        "0.36 -> 0.87 0.32 -> 0.79 0.31 -> 0.77 0.33 -> 0.81 – – 0.33 -> 0.83".split()
    )
    assert "34 requests: 25 optimised, 9 reused; 108 of 138 MKVs accepted, 10 conflicts" in lines
    assert "4.1 MB up, 12.4 MB down; 6 min 25 s" in lines
    assert lines[-2:] == ["failed nodes:", "  town-hall (slot 2, reedit): no reply within 600 s"]


def test_values_that_were_found_are_not_passed_off_as_computed(sample):
    results = sample("completed")
    for slot in results.slots:
        slot.cached = 2
    found = 2 * len(results.slots)
    assert f"25 optimised ({found} of them known before), 9" in summary_table(results)
    page = render_report(results)
    assert f"{25 - found} computed, 9 reused, {found} from the work-cache" in page


def test_every_sample_has_a_table_without_control_characters(any_results):
    text = summary_table(any_results)
    assert "mean" in text and "\x1b" not in text and "\x07" not in text
    assert len(text.splitlines()) < 20


def test_run_without_slots(sample):
    text = summary_table(sample("unstarted"))
    assert text.startswith("failed: fedit")
    assert "0 requests" in text
    assert "  library (hello): model fingerprint 77ab01 differs" in text


def test_not_measured(sample):
    text = summary_table(sample("deployed"))
    museum = next(line for line in text.splitlines() if line.startswith("museum"))
    assert museum.split()[4] == "–" and museum.split()[-1] == "–"


def cells(runs):
    table = runs_table(runs)
    return table.columns, *table.texts


def test_comparison_with_central(sample):
    runs = [(name, sample(name)) for name in ("completed", "local", "central", "deployed")]
    header, *rows = cells(runs)
    assert header[:3] == ["Run", "Own score", "Federation score"]
    assert header[-1] == "Of central"
    assert {len(row) for row in (header, *rows)} == {14}
    assert [(row[0], *row[1:3], row[-1]) for row in rows] == [
        ("completed", "0.88", "0.83", "95 %"),
        ("local", "0.88", "0.34", "39 %"),
        ("central", "0.87", "–", "100 %"),
        ("deployed", "0.88", "–", "–"),
    ]


def test_comparison_shows_a_common_start(sample):
    header, *rows = cells([("a", sample("completed")), ("b", sample("local"))])
    assert "Of central" not in header
    assert [row[0] for row in rows] == ["unedited", "a", "b"]
    assert rows[0][1:3] == ["0.33", "0.33"]


def test_shares_of_tokens_are_called_so(sample):
    assert "shares of tokens before -> after" in summary_table(sample("zsre"))
    assert "shares before -> after" in summary_table(sample("local"))


def test_comparison_tells_metrics_apart(sample):
    header, *rows = cells([("a", sample("zsre")), ("b", sample("local"))])
    assert header[-1] == "Metric"
    assert [(row[0], row[-1]) for row in rows] == [("a", "tokens"), ("b", "likelihood")]

    header, *rows = cells([("a", sample("zsre")), ("b", sample("zsre"))])
    assert "Metric" not in header and len(rows) == 3


def test_what_edits_do_to_other_facts_about_their_subjects_is_shown(sample):
    results = sample("completed")
    spoilt = results.summary.own.model_copy(update={"other_relations": 0.75})
    results.summary.own = spoilt
    header, *rows = cells([("a", results), ("b", sample("local"))])
    shown = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert shown["Own other relations"] == ("–", "0.75", "–")
    assert shown["Federation other relations"] == ("–", "–", "–")
    lines = summary_table(results).splitlines()
    assert "own other relations" in lines[2]
    assert [line.split()[-5] for line in lines if line.startswith("mean")] == ["0.75"]
    assert '<th scope="col">Other relations</th>' in render_report(results)


def test_what_follows_from_edits_is_shown_where_it_was_measured(sample):
    results = sample("completed")
    assert "Portability" not in render_report(results)
    known = results.summary.own.model_copy(update={"portability": 0.125, "reversal": 0.0})
    results.summary.own = known
    header, *rows = cells([("a", results), ("b", sample("local"))])
    shown = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert shown["Own portability"] == ("–", "0.12", "–")
    assert shown["Own reversal"] == ("–", "0.00", "–") and "Federation reversal" not in header
    page = render_report(results)
    assert '<th scope="col">Portability</th>' in page and "the other way round" in page


def test_what_edits_do_to_the_names_of_their_subjects_is_shown(sample):
    results = sample("completed")
    spoilt = results.summary.own.model_copy(update={"subject_fidelity": 0.35})
    results.summary.own = spoilt
    header, *rows = cells([("a", results), ("b", sample("local"))])
    shown = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert shown["Own subject fidelity"] == ("–", "0.35", "–")
    assert "own subject fidelity" in summary_table(results)
    assert '<th scope="col">Subject fidelity</th>' in render_report(results)


def test_what_becomes_of_facts_that_share_a_subject_is_said(sample):
    results, shared = sample("completed"), {"count": 12, "hold": 11, "efficacy": 1.0}
    assert "share a subject" not in summary_table(results)
    for scope, count in (("own", 12), ("federation", 48)):
        metrics = getattr(results.summary, scope)
        found = SharedSubject(**shared | {"count": count})
        setattr(results.summary, scope, metrics.model_copy(update={"shared_subject": found}))
    kept = [(node.own.count, node.own.accuracy) for node in results.nodes.values()]
    said = sum(round(count * accuracy) for count, accuracy in kept)
    assert f"{said} of {sum(count for count, _ in kept)} own facts hold" in summary_table(results)
    own = "12 own facts share a subject with others: 11 hold"
    everybody = "the federation's facts that share a subject, asked of every node: 11 of 48 hold"
    assert {own, everybody} < set(summary_table(results).splitlines())
    page = unescape(render_report(results))
    assert f"{own}." in page and f"T{everybody[1:]}." in page
    again = Results.model_validate_json(results.model_dump_json(by_alias=True))
    assert again == results
    assert results.as_json()["summary"]["own"]["shared_subject"]["accuracy"] == 11 / 12


def test_comparison_of_nothing():
    assert len(runs_table([]).markdown().splitlines()) == 2


def test_full_metrics_stand_below_the_table(sample):
    lines = summary_table(sample("full")).splitlines()
    assert "facts received from others: score 0.71 on 21" in lines
    answered = "WILD match 0.01 -> 0.38, chat match 0.02 -> 0.70"
    assert f"own facts: exact match 0.05 -> 0.75, {answered}, entropy 6.10 -> 5.90" in lines
    neutral = "neutral text: KL 0.0123, top-10 overlap 0.94, perplexity 11.50 -> 11.75"
    neutral += ", cloze 0.90 -> 0.85"
    assert neutral in lines
    assert any("25 optimised (20 from another's value), 9 reused" in line for line in lines)
    assert "neutral" not in summary_table(sample("completed"))


def test_comparison_has_columns_for_what_some_run_measured(sample):
    header, *rows = cells([("a", sample("full")), ("b", sample("zsre"))])
    shown = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert shown["Run"] == ("a", "b")
    assert shown["Received score"] == ("0.71", "–")
    assert shown["Federation exact match"] == ("0.75", "–")
    assert shown["Own WILD match"] == shown["Federation WILD match"] == ("0.38", "–")
    assert shown["Own chat match"] == shown["Federation chat match"] == ("0.70", "–")
    assert shown["Federation entropy"] == ("5.90", "–")
    assert shown["Neutral KL"] == ("0.0123", "–")
    assert shown["Neutral perplexity"] == ("11.75", "–")
    assert shown["Cloze"] == ("0.85", "–")
    assert header[-1] == "Metric"

import functools
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from report.conftest import SAMPLES, as_results

from fedit_app.report.drawing import standalone
from fedit_app.report.plots import (
    _facts_so_far,
    change_plot,
    cost_plot,
    exchange_plot,
    facts_plot,
    score_plot,
)

PLOTS = [score_plot, facts_plot, exchange_plot, change_plot, cost_plot]


@pytest.fixture(scope="module")
def drawn():
    """Gives `drawn(plot, "completed")`: the drawing of a sample, made once."""
    return functools.cache(lambda plot, name: plot(as_results(SAMPLES[name]())))


def texts(svg):
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if "text" in e.tag]


@pytest.mark.parametrize("plot", PLOTS)
def test_drawings_are_deterministic_and_leave_no_state(drawn, sample, plot):
    before = dict(matplotlib.rcParams)
    assert plot(sample("completed")) == drawn(plot, "completed")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("plot", PLOTS)
def test_colours_follow_the_page(drawn, plot):
    svg = drawn(plot, "completed")
    assert "var(--plot-ink, #1f2328)" in svg
    assert "#0101" not in svg and "#0404" not in svg and "#000000" not in svg
    assert "DejaVu" not in svg and "<style" not in svg and "metadata" not in svg
    assert svg.startswith("<svg") and 'role="img"' in svg


def test_ids_are_unique_across_the_drawings(drawn):
    ids, targets = [], []
    for plot in PLOTS:
        root = ElementTree.fromstring(drawn(plot, "completed"))
        own = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        used = [element.attrib["href"] for element in root.iter() if "href" in element.attrib]
        assert {target.removeprefix("#") for target in used} <= set(own)
        ids, targets = ids + own, targets + used
    assert targets and len(ids) == len(set(ids))


def test_score_plot_names_the_last_means(drawn, sample):
    labels = texts(drawn(score_plot, "completed"))
    assert "Own facts, mean (0.88 at the end)" in labels
    assert "Federation's facts, mean (0.83 at the end)" in labels
    assert "Slot (0 = before any edit)" in labels
    only_own = texts(score_plot(sample("deployed")))
    assert not any("Federation" in label for label in only_own)


def test_exchange_plot_sums_over_slots(sample):
    results = sample("completed")
    for slot in results.slots:
        for node in slot.nodes.values():
            node.received_from = {}
    results.slots[0].nodes["museum"].received_from = {"library": 20}
    results.slots[2].nodes["museum"].received_from = {"library": 22, "gone": 7}
    labels = texts(exchange_plot(results))
    assert "42" in labels and "7" in labels and "gone" in labels


def test_change_plot_has_a_row_per_node(drawn, sample):
    labels = texts(drawn(change_plot, "completed"))
    assert [name for name in labels if name in ("clinic-north", "library", "museum")]
    assert "Own facts" in labels and "Federation's facts" in labels
    assert "Federation's facts" not in texts(change_plot(sample("central")))


def test_nothing_to_draw(sample):
    assert [plot(sample("unstarted")) for plot in PLOTS] == [""] * len(PLOTS)
    assert exchange_plot(sample("local")) == ""


def test_a_score_of_zero_is_drawn(sample):
    results = sample("central")
    for node in (results.nodes["central"], results.slots[0].nodes["central"]):
        node.own = node.own.model_copy(update={"score": 0.0})
    assert score_plot(results) and change_plot(results)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("plot", PLOTS)
def test_foreign_text_stays_text(drawn, plot):
    svg = drawn(plot, "hostile")
    assert "<script" not in svg and "\x1b" not in svg
    if plot in (exchange_plot, change_plot):
        assert "<script>alert(1…" in texts(svg)


@pytest.mark.filterwarnings("error")
def test_names_are_no_formulas_and_need_no_glyphs(sample):
    results = sample("completed")
    results.nodes = {"$x^2$ 図書館": results.nodes["museum"]}
    assert "$x^2$ 図書館" in texts(change_plot(results))


def test_beside_the_exchange_stand_reuse_composed_keys_and_conflicts(sample):
    results = sample("completed")
    results.slots[0].nodes["museum"].composed = 77
    labels = texts(exchange_plot(results))
    assert {"reused", "composed", "conflicts", "77"} <= set(labels)
    for slot in results.slots:
        for node in slot.nodes.values():
            node.composed = node.conflicts = 0
    assert not {"composed", "conflicts"} & set(texts(exchange_plot(results)))


def test_the_curve_over_facts_needs_facts_of_others(drawn, sample):
    labels = texts(drawn(facts_plot, "completed"))
    assert labels.count("Own facts") == labels.count("Federation's facts") == 1
    assert facts_plot(sample("local")) == ""
    results = sample("completed")
    last = results.slots[-1].nodes["museum"]
    last.received = last.own.model_copy(update={"count": 7})
    own = sum(slot.nodes["museum"].requests for slot in results.slots)
    assert _facts_so_far(results, "museum")[3] == own + 7, "not what came in the place of others"


def test_costs_name_every_stage_that_took_time_and_the_bytes_of_a_slot(drawn, sample):
    labels = texts(drawn(cost_plot, "completed"))
    assert {"Edit", "Re-edit", "Evaluate", "Slot 3", "6.6 MB", "4.9 MB"} <= set(labels)
    assert "compose" not in labels and cost_plot(sample("unstarted")) == ""


@pytest.mark.parametrize("plot", PLOTS)
def test_a_drawing_is_a_vector_file_of_its_own(drawn, plot):
    text = standalone(drawn(plot, "hostile"))
    root = ElementTree.fromstring(text)
    assert root.attrib["width"].endswith("pt") and "var(" not in text
    assert root.tag == "{http://www.w3.org/2000/svg}svg"

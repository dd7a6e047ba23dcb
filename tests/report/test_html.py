import csv
import json
import re
from html.parser import HTMLParser

import pytest

from fedit_app.report import Results, render_report, write_report

pytestmark = pytest.mark.long

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects a page's tags and attributes, and fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


_pages: dict[str, str] = {}


def page_of(results):
    """The page of results, drawn once."""
    key = json.dumps(results.as_json())
    if key not in _pages:
        _pages[key] = render_report(results)
    return _pages[key]


def words(results):
    return re.sub(r"\s+", " ", Page(page_of(results)).text)


def test_page_is_well_formed_and_self_contained(any_results):
    text = page_of(any_results)
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "b"} & set(page.tags)
    assert page.tags.count("h1") == page.tags.count("main") == 1
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "action")
        assert name != "href" or value.startswith("#")
        assert "url(" not in (value or "") or "url(#" in value
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}


def test_foreign_text_is_escaped(sample):
    text = page_of(sample("hostile"))
    assert "<script" not in text and "<img" not in text and "<b>" not in text
    assert "\x1b" not in text and "\x07" not in text
    for number in (1, 4, 5):
        assert f"&lt;script&gt;alert({number})&lt;/script&gt;" in text
    assert "&lt;b&gt;bad&lt;/b&gt;" in text
    assert "onerror=alert(2)" in Page(text).text


def test_content_of_a_completed_run(sample):
    text = words(sample("completed"))
    assert "Federation's facts: score 0.83, up from 0.33" in text
    assert "Completed, 1 node failed" in text
    assert "In 3 slots, 4 nodes corrected 34 facts" in text
    assert "own facts went from 0.33 to 0.88" in text
    assert "9 requests (26 %) needed no computation" in text
    assert "Nodes accepted 108 of 138 vectors offered to them, with 10 conflicts." in text
    assert re.search(r"town-hall\s*2\s*reedit\s*no reply within 600 s", text)
    assert "reuse-threshold" in text and "own-wins" in text
    assert sample("completed").model.fingerprint in text
    assert "Why offered MKVs were rejected" in text and "no improvement" in text
    assert "Slot 3, node by node" in text
    assert page_of(sample("completed")).count("<svg") == 5


def test_settings_are_shown_as_in_toml(sample):
    page = page_of(sample("completed"))
    assert "<dt><code>own-wins</code></dt><dd><code>true</code></dd>" in page
    assert "<dt><code>output-dir</code></dt><dd><code>&#34;&#34;</code></dd>" in page
    assert "<dt><code>layers</code></dt><dd><code>4-8</code></dd>" in page


def test_run_without_slots(sample):
    text = words(sample("unstarted"))
    assert "No result" in text and "Failed, 4 nodes failed" in text
    assert "ended after 6.4 s before any slot was complete" in text
    assert "4 nodes failed: clinic-north, library, museum and town-hall." in text
    assert "No node finished" in text and "model fingerprint 77ab01 differs" in text


def test_run_without_federation_figures(sample):
    for name in ("central", "deployed"):
        text = words(sample(name))
        assert "Own facts: score" in text
        assert "The whole federation's facts" not in text
        assert "were not measured separately in this run" in text


def test_run_without_exchange(sample):
    text = words(sample("local"))
    assert "Exchange between nodes" not in text
    assert "No node failed." in text


@pytest.mark.parametrize(("after", "words_used"), [(0.1, "down from 0.33"), (0.3285, "as before,")])
def test_headline_does_not_praise_a_loss(sample, after, words_used):
    results = sample("completed")
    summary = results.summary
    summary.federation = summary.federation.model_copy(update={"score": after})
    assert words_used in words(results)


def test_same_results_same_page(sample, tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(sample("completed"), path)
    assert path.read_text(encoding="utf-8") == render_report(sample("completed"))
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["paper", "report.html"]


def test_every_table_and_plot_is_there_for_a_paper(sample, tmp_path):
    write_report(sample("completed"), tmp_path / "report.html")
    folder = tmp_path / "paper"
    drawn = {file.stem for file in folder.glob("*.svg")}
    assert drawn == {"score", "facts", "change", "exchange", "cost"}
    with (folder / "nodes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["node"] for row in rows] == ["clinic-north", "library", "museum", "mean"]
    assert float(rows[2]["own score after"]) == 0.81 and rows[2]["own other relations after"] == ""
    with (folder / "slots.csv").open(encoding="utf-8") as file:
        accepted = [int(row["Accepted"]) for row in csv.DictReader(file)]
    assert accepted == [slot.accepted for slot in sample("completed").slots]
    for name in ("nodes", "slots"):
        text = (folder / f"{name}.tex").read_text(encoding="utf-8")
        assert text.startswith("\\begin{tabular}") and text.endswith("\\end{tabular}\n")
        assert text.splitlines()[2].count("&") < 8, "as many columns as fit on a page"


def test_names_of_others_are_text_in_the_files_for_a_paper(sample, tmp_path):
    write_report(sample("hostile"), tmp_path / "report.html")
    folder = tmp_path / "paper"
    written = (folder / "nodes.tex").read_text(encoding="utf-8")
    assert r"\textless{}script\textgreater{}" in written
    assert "$" not in written.replace("\\$", "").replace(r" $\to$ ", "")
    for file in folder.iterdir():
        assert "\x1b" not in file.read_text(encoding="utf-8")


def test_what_the_shares_mean_is_said(sample):
    assert "the new target is likelier than the true one" in words(sample("local"))
    text = words(sample("zsre"))
    assert "tokens of the wanted answer" in text and "likelier" not in text


def test_full_metrics_have_tables_of_their_own(sample):
    text = words(sample("full"))
    assert "Facts that nodes received from others" in text
    headings = ("Facts", "Exact match", "WILD match", "Chat match", "Entropy, bits", "Magnitude")
    assert re.search(r"\s*".join((*headings, "Own")), text)
    figures = ("0.05→0.75", "0.01→0.38", "0.02→0.70", "6.10→5.90", "0.62")
    assert re.search(r"\s*".join(("Own", *figures, "Received", "0.66")), text)
    assert re.search(r"museum\s*0.0123\s*0.94\s*11.50→11.75", text)
    for absent in ("Neutral text", "nodes received from", "Further measures"):
        assert absent not in words(sample("completed"))


def test_costs_are_shown_node_by_node(sample):
    text = words(sample("full"))
    assert re.search(r"Warm started\s*Reused", text)
    assert re.search(r"museum.{0,60}412.3 kB\s*1.2 MB\s*15.2 s\s*2.1 s\s*8.4 s", text)


def test_every_figure_stands_under_its_heading(sample):
    """Also with stages that only some runs have."""
    results = sample("full").as_json()
    for slot in results["slots"]:
        for record in (slot, *slot["nodes"].values()):
            record["seconds"] |= {"compose": 7.5}
        slot["nodes"]["museum"]["peak_bytes"] = 1_234_000_000
    page = render_report(Results.model_validate(results))
    tables = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert len(tables) > 5
    for table in tables:
        head, *rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        columns = {row.count("<td") + row.count("<th") for row in [head, *rows]}
        assert len(columns) == 1, head
    assert re.search(r"Compose</th>.*Peak memory", page, re.DOTALL)
    assert page.count("<td>1.2 GB</td>") == len(results["slots"]) and "7.5 s" in page

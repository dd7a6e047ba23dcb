"""The pages of `fedit watch`: what they show, to whom, and what they keep out."""

import pytest
from report.conftest import SAMPLES, as_results
from starlette.testclient import TestClient

from fedit_app.report import write_report, write_results
from fedit_app.report.live import render_live, render_now
from fedit_app.report.progress import NodeProgress, RunProgress
from fedit_app.report.results import Failure
from fedit_app.report.watch import LOOPBACK, listen, watch_app
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.long

HOSTILE = "<script>alert(1)</script>\x1b[2J"


def progress(status="running", **changes):
    node = NodeProgress(slot=2, stage="edit", waiting=True, own=0.5)
    answered = NodeProgress(
        slot=2, stage="edit", waiting=False, seen="2026-01-02T03:04:05+00:00", own=0.7
    )
    values = {
        "strategy": "fedit",
        "editor": "memit",
        "model": "tiny",
        "slots": 3,
        "slot": 2,
        "stage": "edit",
        "asked": 2,
        "answered": 1,
        "began": "2026-01-02T03:04:00+00:00",
        "time": "2026-01-02T03:04:05+00:00",
        "nodes": {"museum": node, HOSTILE: answered},
        "failed_nodes": [Failure(node="bank", slot=1, stage="edit", reason=HOSTILE)],
    }
    return RunProgress(status=status, **(values | changes))


@pytest.fixture
def folder(tmp_path):
    write_results(tmp_path / "results.json", as_results(SAMPLES["completed"]()))
    (tmp_path / "progress.json").write_text(progress().model_dump_json())
    return tmp_path


def asking(folder, host=LOOPBACK):
    return TestClient(watch_app(folder, "secret"), base_url=f"http://{host}")


def test_a_run_that_goes_on_is_shown_with_phases_scores_and_errors(folder):
    text = asking(folder).get("/secret/").text
    assert "Slot 2 of 3: edit" in text and "1 of 2 nodes answered" in text
    assert "slot 2, edits" in text and "slot 2, has answered: edit" in text
    assert ">0.60<" in text  # the mean of the last own scores
    assert "<script>alert" not in text and "\x1b" not in text and "&lt;script&gt;" in text
    assert text.count("<svg") == 1
    assert asking(folder).get("/secret/now").text in text.replace("<main>\n", "<main>")


def test_only_who_knows_the_token_and_asks_this_machine_sees_anything(folder):
    for path in ("/", "/wrong/", "/wrong/now", "/secre/", "/secret/results.json"):
        assert asking(folder).get(path).status_code == 404
    assert asking(folder, "evil.example").get("/secret/").status_code == 400
    assert listen(0).getsockname()[0] == "127.0.0.1"


def test_the_page_runs_no_script_but_its_own_and_is_not_kept(folder):
    first, second = (asking(folder).get("/secret/") for _ in range(2))
    nonce = first.text.split('<script nonce="')[1].split('"')[0]
    assert f"script-src 'nonce-{nonce}'; connect-src 'self'" in first.text
    assert "default-src 'none'" in first.text and nonce not in second.text
    assert first.headers["Cache-Control"] == "no-store"
    assert first.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_run_that_has_ended_is_shown_as_its_report(folder, status):
    write_report(as_results(SAMPLES["completed"]()), folder / "report.html")
    (folder / "progress.json").write_text(progress(status).model_dump_json())
    report = (folder / "report.html").read_text("utf-8")
    assert asking(folder).get("/secret/").text == report
    assert asking(folder).get("/secret/now").status_code == 205


def test_a_run_of_an_older_version_is_shown_as_its_report(folder):
    (folder / "progress.json").unlink()
    assert "Federation's facts: score" in asking(folder).get("/secret/").text.replace("&#39;", "'")


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "progress.json").write_text("{")
    answer = asking(folder).get("/secret/")
    assert answer.status_code == 500 and "progress.json: cannot be read" in answer.text


def test_a_run_before_its_first_slot_has_a_page():
    early = progress(slot=0, stage="hello", nodes={}, failed_nodes=[], model=None)
    assert "<title>FedEdit run: fedit</title>" in render_live(early, None, "nonce")
    text = render_now(early, None)
    assert "FedEdit run · fedit · memit<" in text, "the nodes have not said which model"
    assert "Before slot 1: hello" in text and "<table" not in text


def test_a_port_that_is_taken_is_named():
    taken = listen(0)
    with pytest.raises(FedEditError, match="choose another"):
        listen(taken.getsockname()[1])

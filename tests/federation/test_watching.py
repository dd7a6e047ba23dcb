"""What can be seen of a run while it goes on: who does what, when, and no text."""

import threading
import urllib.request

import inprocess
import pytest
from browser import PHONE, browser, needs_chromium

from fedit_app.protocol.messages import EDIT, EVALUATE, REEDIT, unpack_info
from fedit_app.report.progress import load_progress
from fedit_app.report.watch import LOOPBACK, check_run_folder, listen, server_of, watch_app
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.integration


def where(message):
    """Type and slot of a message."""
    return message.metadata.message_type, unpack_info(message.content).get("slot", 0)


def test_a_run_says_who_is_waited_for_what_has_come_and_what_has_failed(settings, tmp_path):
    folder, seen = tmp_path / "run", {}

    def look(node_id, message):
        kind, slot = where(message)
        if node_id == 103 and kind == REEDIT and slot == 2:
            raise RuntimeError("spoilt")
        seen.setdefault((kind, slot), load_progress(folder))

    with pytest.raises(FedEditError, match="no run has begun there"):
        check_run_folder(folder)
    results, _ = inprocess.federate(settings(num_slots=2), 4, tamper=look)

    check_run_folder(folder)
    (failure,) = results["failed_nodes"]
    # In this process a node answers as it is asked: what is seen is the state before that.
    second = seen[EDIT, 2]
    assert (second.status, second.slots, second.slot, second.stage) == ("running", 2, 1, "evaluate")
    assert second.asked == second.answered == 4 and not second.failed_nodes
    for name, node in second.nodes.items():
        measured = results["slots"][0]["nodes"][name]
        assert node.own == measured["own"]["score"] and not node.waiting and node.seen
        assert node.federation == measured["federation"]["score"]
    assert [f.reason for f in seen[EVALUATE, 2].failed_nodes] == [failure["reason"]]
    last = load_progress(folder)
    assert last.status == "completed" and not any(node.waiting for node in last.nodes.values())


def test_nothing_that_can_be_seen_holds_a_text_of_a_request(demo_run, demo_records):
    _, _, folder = demo_run
    text = (folder / "progress.json").read_text("utf-8")
    for record in demo_records:
        assert record["subject"] not in text and record["target_new"] not in text


@needs_chromium
def test_a_browser_follows_a_run_to_its_report(settings, tmp_path, served):
    """Slot 2 begins once the page has been looked at; the report follows by itself."""
    folder, reached, looked = tmp_path / "run", threading.Event(), threading.Event()

    def wait(node_id, message):
        if where(message) == (EDIT, 2):
            reached.set()
            assert looked.wait(120)

    run = threading.Thread(
        target=inprocess.federate,
        args=(settings(num_slots=2), 4),
        kwargs={"tamper": wait, "plots": True},
    )
    run.start()
    try:
        assert reached.wait(120)
        with browser(tmp_path / "chromium") as page:
            address = served(folder)
            page.open(address, PHONE)
            assert "Slot 1 of 2: evaluate" in page.text and "Running" in page.text
            for name in ("bank", "hospital", "museum", "newsroom"):
                assert name in page.text
            assert page.too_wide <= 0 and page.value("document.querySelectorAll('svg').length") == 1
            looked.set()
            page.until("document.body.innerText.includes('Before and after')", 120)
            assert "Completed" in page.text
            assert page.said == [] and all(url.startswith("http://127.") for url in page.asked)
            report = (folder / "report.html").read_bytes()
            assert urllib.request.urlopen(address).read() == report
    finally:
        looked.set()
        run.join(120)


@pytest.fixture
def served():
    """Gives `served(folder)`: the address of its pages, until the test ends."""
    running = []

    def served(folder):
        listening = listen(0)
        server = server_of(watch_app(folder, "secret"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread))
        return f"http://{LOOPBACK}:{listening.getsockname()[1]}/secret/"

    yield served
    for server, thread in running:
        server.should_exit = True
        thread.join(30)

"""The `fedit` command: what it reads, what it refuses, and how it says so."""

import html
import io
import json
import logging
import re
import shutil
from pathlib import Path

import inprocess
import pytest
import tiny
from rich.console import Console

from fedit_app.cli.main import main
from fedit_app.config.overrides import read_run_config
from fedit_app.editing.workbench import latest_workbench
from fedit_app.flower_compat import launch
from fedit_app.models import answers
from fedit_app.models.answers import reply
from fedit_app.models.loading import load_model
from fedit_app.protocol.metrics import SharedSubject
from fedit_app.report import load_results, render_report, write_results
from fedit_app.support.errors import FedEditError
from fedit_app.support.progress import Progress

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
GOOD = {"id": "f-1", "subject": "Zanzibarium", "prompt": "{} is in", "target_new": "Qualverin"}


# What read_run_config makes of files and overrides


def test_overrides_win_over_the_preset(tmp_path):
    file = tmp_path / "preset.toml"
    file.write_text('strategy = "local"\nnum-slots = 2\nclamp = 0.5\n', encoding="utf-8")
    values = read_run_config(file, ["num-slots=5", 'strategy="fedavg"', "centred=true"])

    assert values == {"strategy": "fedavg", "num-slots": 5, "clamp": 0.5, "centred": True}


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("strategy=FedMedian", "strategy", "FedMedian"),
        ("layers=4-8", "layers", "4-8"),
        ("covariance-source=hub:wikitext:wikitext-2-raw-v1", "covariance-source", ...),
        ("model=org/name", "model", "org/name"),
        ("pool-uri=s3://bucket/pool", "pool-uri", "s3://bucket/pool"),
        ("data-path=hub:owner/name::test", "data-path", "hub:owner/name::test"),
        ("embedding-model=owner/encoder", "embedding-model", "owner/encoder"),
        (" seed = 7", "seed", 7),
        ("clamp=1e-1", "clamp", 0.1),
        ("layers=", "layers", ""),
    ],
)
def test_values_are_toml_or_else_text(override, key, value):
    expected = override.split("=", 1)[1] if value is ... else value

    assert read_run_config(None, [override]) == {key: expected}


def test_relative_paths_are_those_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "text.txt").write_text("words")
    keys = ("data-path", "state-dir", "output-dir", "pool-uri")
    overrides = [f"{key}=here/{key}" for key in keys]
    overrides += ["model=model", "embedding-model=model", "covariance-source=text.txt"]
    values = read_run_config(None, overrides)

    assert {key: values[key] for key in keys} == {k: str(tmp_path / "here" / k) for k in keys}
    assert values["model"] == values["embedding-model"] == str(tmp_path / "model")
    assert values["covariance-source"] == str(tmp_path / "text.txt")


def test_a_list_of_layers_is_text_for_flower(tmp_path):
    assert read_run_config(None, ["layers=[4, 6]"]) == {"layers": "4,6"}


def test_names_that_are_no_files_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = read_run_config(None, ["model=smollm2-135m", "covariance-source=sample"])

    assert values == {"model": "smollm2-135m", "covariance-source": "sample"}


@pytest.mark.parametrize(
    ("text", "told"),
    [(b"strategy = ", "not TOML"), (b'model = "\xff"', "not TOML"), (None, "read")],
)
def test_a_preset_that_cannot_be_read(tmp_path, text, told):
    file = tmp_path / "preset.toml"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(FedEditError, match=f"preset.toml: .*{told}"):
        read_run_config(file, [])


def test_an_override_without_a_value():
    with pytest.raises(FedEditError, match="-c num-slots: write KEY=VALUE"):
        read_run_config(None, ["num-slots"])


# What `fedit run` refuses


@pytest.fixture
def started(monkeypatch) -> list[dict]:
    """What would have been run; nothing is."""
    calls: list[dict] = []

    def simulate(app, config, nodes, on_line):
        calls.append({"app": app, "config": config, "nodes": nodes})
        return "finished:completed"

    monkeypatch.setattr(launch, "simulate", simulate)
    return calls


@pytest.fixture
def fedit(capsys, tiny_folder, tmp_path, started):
    """Gives `fedit(*arguments)`: runs the command on the tiny model; (status, output, errors)."""

    def fedit(*arguments: str) -> tuple[int, str, str]:
        common = ["-c", f"model={tiny_folder}", "--output-dir", str(tmp_path / "run")]
        status = main(["run", "--app", str(ROOT), *common, *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return fedit


def write_requests(folder: Path, **nodes: list[dict]) -> str:
    folder.mkdir(exist_ok=True)
    for name, records in nodes.items():
        text = "\n".join(map(json.dumps, records))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


def options(**values) -> list[str]:
    return [part for key, value in values.items() for part in ("-c", f"{key}={value}")]


def refused(outcome: tuple[int, str, str], started: list[dict]) -> str:
    status, out, err = outcome
    last = err.splitlines()[-1]
    assert status == 2
    assert started == []
    assert out == ""
    assert last.startswith("fedit: error: ")
    assert "Traceback" not in err
    return last


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"model": "/no/such/model"}, "/no/such/model does not exist"),
        ({"model": "./no-such-model"}, "no-such-model does not exist"),
        ({"layers": "3-4"}, "layers: 4 is out of range, the model has 5 layers"),
        ({"layers": "4-2"}, "layers = '4-2'"),
        ({"strategy": "fedbest"}, "strategy = 'fedbest' must be one of fedit, local"),
        ({"strategy": "QFedAvg"}, "needs arguments"),
        ({"num-slot": 3}, "did you mean 'num-slots'"),
        ({"num-slots": "many"}, "num-slots = 'many' must be an int"),
        ({"editor": "rome"}, "editor"),
        ({"device": "gpu"}, "device: 'gpu'"),
        ({"covariance-source": "/no/text"}, "covariance-source: '/no/text'"),
        ({"dataset": "jsonl"}, "data-path"),
        ({"dataset": "jsonl", "data-path": "/no/such/data"}, "/no/such/data does not exist"),
    ],
)
def test_wrong_settings(fedit, started, overrides, told):
    assert told in refused(fedit(*options(**overrides)), started)


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([GOOD | {"prompt": "Zanzibariums are in"}], "line 1: prompt has 0 placeholders"),
        ([GOOD | {"target_new": " "}], "line 1: target_new is empty"),
        ([GOOD, GOOD], "line 2: its id was used in line 1"),
        ([], "holds no edit request"),
    ],
)
def test_data_in_which_every_file_is_faulty(fedit, started, tmp_path, records, told):
    data = write_requests(tmp_path / "data", bakery=records, court=records)
    message = refused(fedit(*options(**{"dataset": "jsonl", "data-path": data})), started)

    assert told in message
    assert "bakery.jsonl" in message
    assert "Zanzibarium" not in message and "Qualverin" not in message


def test_one_faulty_file_of_two_is_warned_of(fedit, started, tmp_path, caplog):
    data = write_requests(tmp_path / "data", bakery=[GOOD], court=[GOOD, GOOD])
    status, _, err = fedit(*options(**{"dataset": "jsonl", "data-path": data}))

    assert status == 0
    assert started[0]["nodes"] == 2
    told = err + caplog.text  # whoever of the two listens to the log
    assert "node court will be left out" in told
    assert "bakery" not in told


def test_data_that_cannot_be_dealt_out(fedit, started, tmp_path):
    data = write_requests(tmp_path / "data", all=[GOOD | {"id": str(n)} for n in range(3)])
    asked = {"dataset": "jsonl", "data-path": f"{data}/all.jsonl"}

    told = refused(fedit(*options(**asked, partition="random")), started)
    assert "3 requests are too few for 4 nodes" in told
    told = refused(fedit(*options(**asked, partition="relation"), "--nodes", "2"), started)
    assert "the data has 0 relations" in told
    assert not (tmp_path / "run").exists()

    assert fedit(*options(**asked, partition="random"), "--nodes", "3")[0] == 0
    assert started[0]["nodes"] == 3


@pytest.mark.parametrize(
    ("nodes", "told"), [("5", "too few for 5 nodes"), ("0", "--nodes 0"), ("-3", "--nodes -3")]
)
def test_a_wrong_number_of_nodes(fedit, started, nodes, told):
    assert told in refused(fedit("--nodes", nodes), started)


def test_an_output_folder_that_is_in_use(fedit, started, tmp_path):
    (tmp_path / "run").mkdir()
    assert fedit()[0] == 0
    started.clear()

    (tmp_path / "run" / "results.json").write_text("{}")
    assert "output-dir" in refused(fedit(), started)

    (tmp_path / "file").write_text("")
    assert "output-dir" in refused(fedit("--output-dir", str(tmp_path / "file")), started)


def test_a_model_folder_that_is_damaged(fedit, started, tmp_path, tiny_folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in refused(fedit("-c", f"model={empty}"), started)

    for text in ("{", "{}", '{"model_type": "teapot"}'):
        damaged = shutil.copytree(tiny_folder, tmp_path / "damaged", dirs_exist_ok=True)
        (Path(damaged) / "config.json").write_text(text)
        assert "model" in refused(fedit("-c", f"model={damaged}"), started)


def test_a_folder_without_an_app(fedit, started, tmp_path):
    assert "holds no Flower app" in refused(fedit("--app", str(tmp_path)), started)


def test_names_that_only_another_app_may_know_are_left_to_its_run(fedit, started, tmp_path, log):
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(ROOT / "pyproject.toml", own)
    name = "fedit_app.server.frugal:Frugal"
    for given in ({"strategy": name}, {"editor": "rome"}):
        refused(fedit(*options(**given)), started)
        (told,) = given.values()
        status, _, err = fedit(*options(**given), "--app", str(own))
        assert status == 0
        (call,) = started
        assert call["app"] == own and told in call["config"].values()
        said = err + log.text  # whoever of the two listens to the log
        assert f"the app in {own} has code of its own" in said and told in said
        started.clear()
        log.clear()


# What `fedit run` starts


def test_a_run_is_started_with_what_was_asked_for(fedit, started, tmp_path, tiny_folder):
    status, out, _ = fedit("-c", "num-slots=2")

    assert status == 0
    (call,) = started
    assert call["app"] == ROOT
    assert call["nodes"] == 4
    assert call["config"] == {
        "model": str(tiny_folder),
        "num-slots": 2,
        "output-dir": str(tmp_path / "run"),
    }
    assert str(tmp_path / "run" / "report.html") in out


def test_a_preset_names_the_run_folder(started, tmp_path, tiny_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(f'model = "{tiny_folder}"\n', encoding="utf-8")
    assert main(["run", "--app", str(ROOT), "--config", "mine.toml", "--nodes", "2"]) == 0

    folder = Path(started[0]["config"]["output-dir"])
    assert folder.parent == tmp_path / "runs"
    assert re.fullmatch(r"mine-\d{8}-\d{6}", folder.name)
    assert started[0]["nodes"] == 2


def test_a_failed_run_has_an_exit_status(fedit, monkeypatch):
    monkeypatch.setattr(launch, "simulate", lambda *_: "finished:failed")
    status, out, err = fedit()
    assert (status, out) == (1, "")
    assert "fedit: the run failed (finished:failed)" in err

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "simulate", interrupted)
    status, _, err = fedit()
    assert status == 130
    assert err.endswith("fedit: interrupted\n")


# `fedit ask` and `fedit table`


def test_the_end_of_a_run_says_what_became_of_facts_that_share_a_subject(
    fedit, finished, monkeypatch
):
    def simulate(app, config, *_):
        results = load_results(finished / "results.json")
        shared = SharedSubject(count=12, hold=11, efficacy=1.0)
        own = results.summary.own.model_copy(update={"shared_subject": shared})
        results.summary.own = own
        write_results(Path(config["output-dir"]) / "results.json", results)
        return "finished:completed"

    monkeypatch.setattr(launch, "simulate", simulate)
    status, out, _ = fedit()
    assert status == 0
    said, shared, results, *_ = out.splitlines()
    assert re.fullmatch(r"\d+ of \d+ own facts hold", said)
    assert shared == "12 own facts share a subject with others: 11 hold"
    assert results.startswith("results: ")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder) -> Path:
    """The folder of a finished run over one slot, and in it the log."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    logger = logging.getLogger("fedit_app")
    handler = logging.FileHandler(folder.with_name("log"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    config = {
        "model": str(tiny_folder),
        **tiny.RUN_CONFIG,
        "num-slots": 1,
        "output-dir": str(folder),
    }
    inprocess.federate(config, 4)
    logger.removeHandler(handler)
    return folder


def ask(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["ask", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_ask_about_own_facts(finished, capsys):
    status, out, _ = ask(capsys, str(finished), "--node", "museum")

    assert status == 0
    assert "node museum: 18 MKVs" in out
    assert "The Wellcome Collection is located in the city of ..." in out
    assert out.count("before") == out.count("after") == 3


def test_ask_a_prompt(finished, capsys):
    status, out, _ = ask(capsys, str(finished), "--node", "bank", "The Royal Mint is in")

    assert status == 0
    assert out.count(" ...\n") == 1
    assert "The Royal Mint is in ..." in out
    probabilities = re.findall(r"(\d+\.\d)% .*? (\d+\.\d)% ", out)
    assert len(probabilities) == 5


def test_ask_the_run_after_it_was_moved(finished, capsys, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "moved")
    first = ask(capsys, str(finished), "--node", "bank", "The Royal Mint is in")

    assert ask(capsys, str(moved), "--node", "bank", "The Royal Mint is in") == first


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--node", "nobody"), "--node nobody: no ledger .*bank, hospital, museum, newsroom"),
        (("--node", "bank", " "), None),
    ],
)
def test_ask_in_vain(finished, capsys, arguments, told):
    status, _, err = ask(capsys, str(finished), *arguments)

    assert "Traceback" not in err
    if told:
        assert status == 2
        assert re.search(told, err)


def test_texts_of_a_node_are_in_no_report_but_the_one_that_was_asked_for(
    finished, capsys, tmp_path
):
    page, worst = tmp_path / "mine.html", ("--node", "museum", "--worst", "2")
    status, out, err = ask(capsys, str(finished), *worst, "--report", str(page), "--format", "json")
    assert status == 0 and "texts of the requests of museum" in err
    facts = [row["fact"] for row in json.loads(out)["facts"]]
    text = html.unescape(page.read_text("utf-8"))
    assert "What museum says worst" in text and "Slots and costs" in text
    assert all(fact in text for fact in facts)
    shared = html.unescape(render_report(load_results(finished / "results.json")))
    assert not [fact for fact in facts if fact in shared] and "says worst" not in shared

    within = ask(capsys, str(finished), *worst, "--report", str(finished / "report.html"))
    assert within[0] == 2 and "whose files hold no texts" in within[2]
    alone = ask(capsys, str(finished), "--node", "museum", "--report", str(page), "Hello")
    assert alone[0] == 2 and "give it with --worst N" in alone[2]


def test_ask_what_is_no_run(capsys, tmp_path):
    status, _, err = ask(capsys, str(tmp_path), "--node", "bank", "Hello")

    assert status == 2
    assert "not a run folder" in err


@pytest.fixture
def chatting(tiny_folder, monkeypatch):
    """The model of the finished run has a chat template."""
    latest_workbench.cache_clear()  # it may hold a model that was loaded before
    tokenizer = load_model(str(tiny_folder)).tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", tiny.CHAT_TEMPLATE)


def test_ask_a_chat_model(finished, chatting, capsys):
    status, out, _ = ask(capsys, str(finished), "--node", "bank", "--chat", "Where is the Mint?")
    assert status == 0
    assert "Where is the Mint? ..." in out and "before" in out
    status, out, _ = ask(capsys, str(finished), "--node", "museum", "--chat")
    assert status == 0
    assert "Complete the sentence with a name or word: The Wellcome Collection is" in out


def test_a_model_that_is_no_chat_model_is_not_talked_with(finished, capsys):
    status, _, err = ask(capsys, str(finished), "--node", "bank", "--chat", "Where is the Mint?")
    assert status == 2
    assert "has no chat template" in err


def test_chat_shows_both_models_turn_by_turn(finished, chatting, monkeypatch, capsys):
    heard = []

    def hear(model, turns):
        heard.append((bool(model.edits_hash()), list(turns)))
        return reply(model, turns)

    monkeypatch.setattr(answers, "reply", hear)
    monkeypatch.setattr("sys.stdin", io.StringIO("Where is the Mint?\nAnd the museum?\n\n"))
    assert main(["chat", str(finished), "--node", "bank"]) == 0
    out = capsys.readouterr().out
    assert out.count("before") == out.count("after") == 2
    assert [edited for edited, _ in heard] == [False, True, False, True]
    for first, second in ((heard[0], heard[2]), (heard[1], heard[3])):
        assert first[1] == ["Where is the Mint?"]
        assert [second[1][0], second[1][2]] == ["Where is the Mint?", "And the museum?"]
    assert heard[2][1][1] != heard[3][1][1], "each remembers what it has said itself"


def test_chat_ends_with_its_input(finished, chatting, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat", str(finished), "--node", "bank"]) == 0
    assert "18 MKVs in the ledger" in capsys.readouterr().out


def test_table_compares_runs(finished, capsys, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    assert main(["table", str(finished), str(other)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith(("| run ", "| other "))]) >= 2

    assert main(["table", str(tmp_path)]) == 2
    assert "results.json" in capsys.readouterr().err


def test_the_bar_follows_the_log_of_a_run(finished):
    terminal = io.StringIO()
    with Progress(1, Console(file=terminal, force_terminal=True, width=100)) as progress:
        for line in finished.with_name("log").read_text(encoding="utf-8").splitlines():
            progress.line(line)

    assert "slot 1 of 1, evaluate: 4 of 4 nodes" in terminal.getvalue()

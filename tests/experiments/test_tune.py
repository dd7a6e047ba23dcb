"""`fedit tune`: what is tried, what wins, what is written, and what is refused."""

import dataclasses
import functools
import json
import logging
import tomllib
from pathlib import Path

import pytest
import tiny
import torch
from published import counterfact

from fedit_app.cli.main import main
from fedit_app.config.editing import read_layers
from fedit_app.config.overrides import read_run_config
from fedit_app.config.run_config import RunConfig
from fedit_app.editing.covariance import CovarianceSource, covariance
from fedit_app.editing.method import EditingMethod
from fedit_app.editing.settings import EditSettings, edit_settings, run_settings
from fedit_app.experiments import trials as trials_module
from fedit_app.experiments.preflight import check_simulation
from fedit_app.experiments.search import Grid, windows
from fedit_app.experiments.trials import Trial, best_of
from fedit_app.experiments.tune import Tuned, tune
from fedit_app.experiments.tune_requests import requests_for
from fedit_app.facts.jsonl import read_requests
from fedit_app.models.loading import load_model
from fedit_app.protocol.metrics import Metrics
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.long

SMALL = Grid(
    covariance_weights=(1.0, 100.0),
    l2=(1.0, 10.0),
    free_shares=(0.3, 0.7),
    depths=(0.2, 0.4),
    learning_rates=(0.2, 0.5),
    around=(0.3, 3.0),
)
DEMO = sorted(tiny.DEMO.glob("*.jsonl"))


def tiny_config(folder, **overrides) -> RunConfig:
    """A run configuration of a tiny model, with few steps."""
    common = {
        "model": str(folder),
        "device": "cpu",
        "contexts": 2,
        "value-steps": 6,
        "covariance-tokens": 400,
    }
    given = {name.replace("_", "-"): value for name, value in overrides.items()}
    return RunConfig.parse(common | given)


@pytest.fixture
def config(tiny_folder):
    """Gives `config(**overrides)`: a run configuration of the tiny model."""
    return functools.partial(tiny_config, tiny_folder)


@dataclasses.dataclass(frozen=True)
class Search:
    """A finished search with `memit` on three requests.

    Attributes:
        config: where it started from.
        tuned: its outcome.
        preset: the file that it wrote.
        values_of: layers and step size of every optimisation of values.
        weights: tensors of the model, before and after it.
    """

    config: RunConfig
    tuned: Tuned
    preset: Path
    values_of: list
    weights: list


@pytest.fixture(scope="module")
def search(tiny_folder, tmp_path_factory) -> Search:
    config = tiny_config(tiny_folder, clamp=0.6, weight_decay=0.4)
    preset = tmp_path_factory.mktemp("tune") / "presets" / "best.toml"
    model = load_model(config.model, "cpu").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = []
    optimise = EditingMethod.values

    def counted(self, model, requests, templates, settings, *others, **more):
        calls.append((settings.layers, settings.learning_rate))
        return optimise(self, model, requests, templates, settings, *others, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EditingMethod, "values", counted)
        tuned = tune(config, preset, DEMO[0], count=3, grid=SMALL)
    after = model.state_dict()
    weights = [(tensor, after[name]) for name, tensor in before.items()]
    return Search(config, tuned, preset, calls, weights)


def rows_of(tuned: Tuned) -> list[dict[str, str]]:
    """The candidates by their headings, as people read them."""
    table = tuned.candidates
    return [dict(zip(table.columns, row, strict=True)) for row in table.texts]


def settings_of(preset) -> EditSettings:
    parsed = RunConfig.parse(read_run_config(preset, []))
    return run_settings(parsed, "llama", tiny.LAYERS, tiny.D_MODEL)


def published(requests) -> list[dict]:
    return [
        counterfact(
            *(number, request.prompt, request.subject, request.target_new, request.target_true),
            paraphrase_prompts=list(request.paraphrase_prompts),
            neighborhood_prompts=list(request.neighborhood_prompts),
        )
        for number, request in enumerate(requests)
    ]


def settings(**given) -> EditSettings:
    return edit_settings("llama", tiny.LAYERS, tiny.D_MODEL, **given)


def trial(score: float, change: float, stage: str = "weight") -> Trial:
    parts = dict.fromkeys(("score", "efficacy", "paraphrase", "neighborhood"), score)
    metrics = Metrics(**parts, accuracy=None, count=1)
    return Trial(stage, settings(covariance_weight=change), metrics, 5.0, change)


# The whole search


@pytest.mark.integration
def test_the_best_of_the_table_is_written(search):
    rows = rows_of(search.tuned)
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    assert stages == ["start", "weight", "layers", "step size", "weight again"]
    candidates = [(row["layers"], row["lambda"], row["step size"]) for row in rows]
    assert len(set(candidates)) == len(candidates)
    scores = [float(row["score"]) for row in rows]
    assert len(set(scores)) > 1

    values = tomllib.loads(search.preset.read_text())
    written = (values["layers"], f"{values['covariance-weight']:g}", f"{values['learning-rate']:g}")
    best = rows[candidates.index(written)]
    tied = [row for row in rows if float(row["score"]) >= max(scores) - 0.005]
    least = min(float(row["|Delta|/|W|"]) for row in tied)
    assert float(best["score"]) >= max(scores) - 0.005
    assert float(best["|Delta|/|W|"]) == least
    assert f"score {best['score']}" in search.tuned.best


def test_the_preset_gives_the_best_settings_again(search, tmp_path):
    values = tomllib.loads(search.preset.read_text())
    assert set(values) == {
        *("model", "editor", "layers", "covariance-weight", "learning-rate"),
        *("value-steps", "clamp", "weight-decay", "contexts", "covariance-tokens"),
    }
    found = settings_of(search.preset)
    start = run_settings(search.config, "llama", tiny.LAYERS, tiny.D_MODEL)
    assert found == dataclasses.replace(
        start,
        layers=read_layers(values["layers"]),
        covariance_weight=values["covariance-weight"],
        learning_rate=values["learning-rate"],
    )
    runnable = read_run_config(search.preset, ["device=cpu", f"output-dir={tmp_path / 'run'}"])
    assert check_simulation(RunConfig.parse(runnable), None) == 4


def test_the_comment_says_where_it_comes_from(search):
    comment = [line for line in search.preset.read_text().splitlines() if line.startswith("#")]
    assert "`fedit tune`" in comment[0] and comment[0].endswith(", cpu.")
    assert f"3 requests of {DEMO[0].name}" in comment[1]
    assert comment[2].endswith(f"score {rows_of(search.tuned)[0]['score']}.")


def test_values_are_optimised_once_for_layers_and_step_size(search):
    rows = rows_of(search.tuned)
    pairs = {(read_layers(row["layers"]), float(row["step size"])) for row in rows}
    assert len(search.values_of) == len(set(search.values_of)) < len(rows)
    assert set(search.values_of) == pairs


def test_the_weights_are_as_before(search):
    assert all(torch.equal(before, after) for before, after in search.weights)


@pytest.mark.parametrize("editor", ["pmet", "memit-fe"])
def test_every_editor_can_be_tuned(config, tmp_path, editor):
    only_layers = Grid((), (), (), SMALL.depths, (), ())
    rows = rows_of(tune(config(editor=editor), tmp_path / "best.toml", count=2, grid=only_layers))
    assert all(float(row["|Delta|/|W|"]) > 0 for row in rows)


@pytest.mark.integration
def test_covariances_are_collected_in_one_pass(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO)
    only_layers = Grid((), (), (), SMALL.depths, (), ())
    tune(config(), tmp_path / "best.toml", count=2, grid=only_layers)

    passes = [line for line in caplog.messages if "once for this model" in line]
    assert len(passes) == 1
    tried = {layer for span in [(0, 1), *windows(tiny.LAYERS, 2, SMALL.depths)] for layer in span}
    assert len(list(tmp_path.glob("cache/covariance/*/layer-*"))) == len(tried)


def test_alphaedit_searches_its_own_weights(config, tmp_path):
    preset = tmp_path / "best.toml"
    run_config = config(editor="alphaedit", layers="1-2")
    rows = rows_of(tune(run_config, preset, count=4, grid=SMALL))

    assert {row["l2"] for row in rows if row["stage"] == "weight"} <= {"1", "10"}
    found = covariance(load_model(run_config.model, "cpu"), (1, 2), CovarianceSource(tokens=400))
    values = torch.cat([torch.linalg.eigvalsh(found[layer]) for layer in (1, 2)])
    quantiles = [float(values.quantile(share)) for share in SMALL.free_shares]
    tried = [float(row["threshold"]) for row in rows if row["stage"] == "threshold"]
    assert tried == pytest.approx(quantiles, rel=1e-2)

    written = tomllib.loads(preset.read_text())
    assert "covariance-weight" not in written
    best = settings_of(preset)
    assert (best.l2, best.null_space_threshold) == (written["l2"], written["null-space-threshold"])


def test_windows_keep_the_share_of_free_directions(config, tmp_path):
    run_config = config(editor="alphaedit", layers="1-2", null_space_threshold=1e-4)
    only_layers = Grid((), (), (), SMALL.depths, (), ())
    rows = rows_of(tune(run_config, tmp_path / "best.toml", count=2, grid=only_layers))

    model = load_model(run_config.model, "cpu")
    shares = []
    for row in rows:
        layers = read_layers(row["layers"])
        found = covariance(model, layers, CovarianceSource(tokens=400))
        values = torch.cat([torch.linalg.eigvalsh(found[layer]) for layer in layers])
        shares.append(float((values < float(row["threshold"])).double().mean()))
    assert len(rows) > 1
    assert shares == pytest.approx([shares[0]] * len(rows), abs=2 / (2 * tiny.D_FF))


def test_a_candidate_that_cannot_be_solved_is_passed_over(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_config = config(editor="alphaedit", layers="1-2", null_space_threshold=1e-12)
    preset = tmp_path / "best.toml"
    rows = rows_of(tune(run_config, preset, count=3, grid=SMALL))

    assert rows[0]["score"] == rows[0]["|Delta|/|W|"] == "–"
    assert any("not possible: null-space-threshold" in line for line in caplog.messages)
    assert settings_of(preset).null_space_threshold > 1e-12
    assert "defaults: score not possible." in preset.read_text()


def test_without_any_possible_candidate_nothing_is_written(config, tmp_path):
    run_config = config(editor="alphaedit", null_space_threshold=1e-12)
    preset = tmp_path / "best.toml"
    with pytest.raises(FedEditError, match="no candidate can be solved; null-space"):
        tune(run_config, preset, count=2, grid=Grid((), (1.0,), (), (), (), ()))
    assert not preset.exists()


# Interruption, privacy


def test_interrupted_it_has_told_what_it_found(config, tmp_path, monkeypatch, capsys, tiny_folder):
    model = load_model(str(tiny_folder), "cpu").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    score, scored = trials_module.score_requests, []

    def interrupted(*arguments):
        scored.append(arguments)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(trials_module, "score_requests", interrupted)
    preset = tmp_path / "best.toml"
    common = ["-c", f"model={tiny_folder}", "-c", "device=cpu", "-c", "covariance-tokens=400"]
    status = main(["tune", *common, "--requests", "2", "--output", str(preset)])

    assert status == 130
    assert capsys.readouterr().err.count("fedit I tune: ") == 2
    assert list(tmp_path.iterdir()) == []
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.integration
def test_the_command(tmp_path, capsys, tiny_folder):
    data = tmp_path / "records.json"
    requests = read_requests(DEMO[0])
    data.write_text(json.dumps(published(requests), indent=1))
    preset = tmp_path / "best.toml"
    options = ["-c", f"model={tiny_folder}", "-c", "device=cpu", "-c", "covariance-tokens=400"]
    options += ["-c", "value-steps=3", "-c", "contexts=1"]
    options += ["--data", str(data), "--requests", "3", "--output", str(preset), "--format", "json"]
    status = main(["tune", *options])
    said = capsys.readouterr()

    assert status == 0
    told = json.loads(said.out)
    rows = told["candidates"]
    assert told["preset"] == str(preset)
    assert said.err.count("fedit I tune: ") == len(rows)
    for row in rows:
        assert f"{row['stage']}: layers {row['layers']}, lambda {row['lambda']}, " in said.err
    text = said.out + said.err + preset.read_text()
    for request in requests:
        assert request.subject not in text and request.target_new not in text

    before = preset.read_bytes()
    assert main(["tune", *options]) == 2
    assert "already exists; name another file" in capsys.readouterr().err
    assert preset.read_bytes() == before


# What counts as better


def test_the_highest_score_wins_and_ties_go_to_the_smaller_change():
    assert best_of([trial(0.8, 0.1), trial(0.9, 0.5), trial(0.7, 0.01)]).metrics.score == 0.9
    assert best_of([trial(0.9, 0.5), trial(0.897, 0.2), trial(0.891, 0.1)]).change == 0.2
    assert best_of([trial(0.9, 0.5), Trial("layers", settings())]).change == 0.5


def test_among_scores_of_zero_more_of_the_parts_is_better():
    def parts(efficacy, paraphrase, neighborhood, change):
        parts = dict(efficacy=efficacy, paraphrase=paraphrase, neighborhood=neighborhood)
        spoilt = trial(0.0, change)
        metrics = spoilt.metrics.model_copy(update=parts)
        return dataclasses.replace(spoilt, metrics=metrics)

    still, moved = parts(0.0, 0.0, 1.0, 0.001), parts(0.5, None, 0.9, 0.1)
    assert best_of([still, moved]) is moved
    assert best_of([still, moved, trial(0.01, 0.9)]).metrics.score == 0.01


def test_windows_begin_at_shares_of_the_depth():
    depths = Grid().depths
    assert windows(30, 5, depths) == [tuple(range(n, n + 5)) for n in (3, 5, 8, 10, 15)]
    assert windows(5, 2, depths) == [(0, 1), (1, 2), (2, 3)]
    assert windows(3, 2, depths) == [(0, 1)]


# The requests


def test_the_choice_is_spread_over_the_data_and_follows_the_seed(config):
    all_of = [request for file in DEMO for request in read_requests(file)]
    known = {(request.prompt, request.subject): number for number, request in enumerate(all_of)}
    chosen = requests_for(config(), None, 8)
    places = [known[request.prompt, request.subject] for request in chosen]

    assert len(set(places)) == 8
    assert chosen == requests_for(config(), None, 8)
    assert chosen != requests_for(config(seed=1), None, 8)
    files = [{request.id for request in read_requests(file)} for file in DEMO]
    assert all(any(request.id in ids for request in chosen) for ids in files)


def test_requests_with_the_same_key_are_not_edited_together(config, caplog):
    chosen = requests_for(config(), None, 1000)

    starts = [request.prompt.partition("{}")[0] + request.subject for request in chosen]
    assert len(set(starts)) == len(starts) < 60
    assert f"1000 requests are asked for, the data has {len(chosen)} different" in caplog.text


@pytest.mark.parametrize("lines", [True, False])
def test_counterfact_is_known_by_its_content(config, tmp_path, lines):
    requests = read_requests(DEMO[1])
    records = published(requests)
    file = tmp_path / "records.txt"
    text = "\n\n".join(map(json.dumps, records)) if lines else f"\n {json.dumps(records)}"
    file.write_text(text)

    chosen = requests_for(config(), file, 4)
    same = requests_for(config(), DEMO[1], 4)
    assert [request.text for request in chosen] == [request.text for request in same]
    assert chosen[0].neighborhood_prompts == same[0].neighborhood_prompts


def test_the_run_configs_own_data_is_taken(config):
    run_config = config(dataset="jsonl", data_path=str(DEMO[2].absolute()))
    chosen = requests_for(run_config, None, 3)
    assert {request.id for request in chosen} <= {request.id for request in read_requests(DEMO[2])}


def test_without_neighborhood_prompts_it_warns(config, tmp_path, caplog):
    file = tmp_path / "plain.jsonl"
    plain = [
        {"id": r.id, "subject": r.subject, "prompt": r.prompt, "target_new": r.target_new}
        for r in read_requests(DEMO[0])[:2]
    ]
    file.write_text("\n".join(map(json.dumps, plain)))
    preset = tmp_path / "best.toml"
    rows = rows_of(tune(config(), preset, file, count=2, grid=SMALL))

    assert "no request has neighborhood prompts" in caplog.text
    assert {row["paraphrase"] for row in rows} == {row["neighborhood"] for row in rows} == {"–"}
    assert preset.exists()


# What is refused, before any work


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "/no/data.jsonl"], "data file data.jsonl: cannot be read"),
        (["--requests", "0"], "--requests 0 must be at least 1"),
        (["-c", "editor=rome"], "editor = 'rome' must be one of memit"),
        (["-c", "layers=3-4"], "layers: 4 is out of range, the model has 5 layers"),
        (["-c", "model=/no/model"], "/no/model does not exist"),
        (["--config", "/no/file.toml"], "--config /no/file.toml: cannot be read"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, tiny_folder, options, told):
    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "cache"))
    output = ["--output", str(tmp_path / "best.toml")]
    status = main(["tune", "-c", f"model={tiny_folder}", "-c", "device=cpu", *output, *options])
    said = capsys.readouterr()

    assert status == 2
    assert said.err.splitlines()[-1].startswith("fedit: error: ")
    assert told in said.err.splitlines()[-1]
    assert "loaded" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_data_file(config, tmp_path):
    file = tmp_path / "empty.jsonl"
    file.write_text("\n")
    with pytest.raises(FedEditError, match="data file empty.jsonl: holds no edit request"):
        tune(config(), tmp_path / "best.toml", file)


def test_an_unknown_family(config, tmp_path):
    folder = tiny.make_model(tmp_path / "granite", "granite")
    with pytest.raises(FedEditError, match="family 'granite' is not known.*module-layers"):
        tune(config(model=str(folder)), tmp_path / "best.toml")
    assert not (tmp_path / "best.toml").exists()


def test_a_family_whose_modules_are_named(config, tmp_path):
    folder = tiny.make_model(tmp_path / "granite", "granite")
    names = {
        "module_layers": "model.layers",
        "module_mlp_output": "mlp.down_proj",
        "module_final_norm": "model.norm",
    }
    preset = tmp_path / "best.toml"
    tune(tiny_config(folder, **names), preset, count=2, grid=Grid((), (), (), (), (), ()))

    values = tomllib.loads(preset.read_text())
    for name, path in names.items():
        assert values[name.replace("_", "-")] == path


def test_a_statistics_file_needs_all_layers_that_are_tried(config, tmp_path, tiny_folder):
    file = tmp_path / "tiny.safetensors"
    options = ["-c", f"model={tiny_folder}", "-c", "device=cpu", "-c", "covariance-tokens=400"]
    assert main(["stats", *options, "--layers", "0-1", "--save", str(file)]) == 0
    run_config = config(covariance_source=str(file))
    with pytest.raises(FedEditError, match="tiny.safetensors: has the layers 0,1, not 2,3"):
        tune(run_config, tmp_path / "best.toml", count=2, grid=SMALL)


def test_an_output_whose_folder_cannot_be_made(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FedEditError, match="its folder cannot be created"):
        tune(config(), tmp_path / "file" / "best.toml")

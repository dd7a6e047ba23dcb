"""Which Flower app a run takes."""

from pathlib import Path

import pytest

from fedit_app.flower_compat.launch import find_app
from fedit_app.support.errors import FedEditError

ROOT = Path(__file__).parents[2]
COMPONENTS = '[tool.flwr.app.components]\nserverapp = "server_app:app"\n'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Gives `project(text)`: makes the current folder a project with this pyproject.toml."""

    def project(text):
        (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return project


def test_a_run_inside_another_flower_project_takes_fedits_app(project):
    folder = project(f'[project]\nname = "quickstart-pytorch"\n{COMPONENTS}')
    assert find_app(None) == ROOT
    assert find_app(folder) == folder, "--app"


def test_a_run_inside_a_checkout_takes_that(project):
    folder = project(f'[project]\nname = "fedit"\n{COMPONENTS}')
    assert find_app(None) == folder


@pytest.mark.parametrize("text", ["", '[project]\nname = "fedit"\n'])
def test_a_folder_without_an_app_is_named(project, text):
    folder = project(text)
    assert find_app(None) == ROOT
    with pytest.raises(FedEditError, match=f"app: {folder} holds no Flower app .*--app"):
        find_app(folder)

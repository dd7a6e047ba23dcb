"""`import fedit_app`: few names, each with a manual, and nothing heavy behind the import."""

import subprocess
import sys

import pytest

import fedit_app


def test_the_import_loads_neither_torch_nor_transformers():
    code = (
        "import sys, fedit_app; fedit_app.EditRequest, fedit_app.MKV, fedit_app.load_requests; "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.mark.parametrize("name", fedit_app.__all__)
def test_every_public_name_is_there_and_explains_itself(name):
    found = getattr(fedit_app, name)
    assert name in dir(fedit_app)
    assert isinstance(found, str) or (found.__doc__ or "").strip()


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Editr'"):
        fedit_app.Editr  # noqa: B018

"""What the server's process loads: nothing that runs a model, and nothing that opens an MKV."""

import subprocess
import sys


def test_the_server_loads_no_model_library_and_no_federation_key():
    """A server needs no GPU stack, starts fast, and its code cannot read what is sealed."""
    code = (
        "import sys, fedit_app.server.app, fedit_app.cli.pool, fedit_app.pool.overview;"
        "banned = ('torch', 'transformers', 'fedit_app.node', 'fedit_app.editing');"
        "print([name for name in sys.modules"
        " if name in banned or name.endswith(('federation_key', 'sealer'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr

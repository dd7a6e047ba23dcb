"""The most memory that a process has held."""

import subprocess
import sys

_SAYS = """
from fedit_app.support.memory import peak_memory
before = peak_memory()
held = bytearray(200 << 20)
del held
print(peak_memory() - before)
"""


def test_what_was_given_back_counts():
    done = subprocess.run([sys.executable, "-c", _SAYS], capture_output=True, text=True)
    assert 190 << 20 < int(done.stdout) < 260 << 20, done.stderr

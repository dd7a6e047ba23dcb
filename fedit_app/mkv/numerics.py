"""The version of the arithmetic behind an MKV.

Vectors of two nodes mean the same only if both nodes compute them in the same way: the same value,
key and shift for a request, rounded alike, compared alike. The settings of that computation are
part of every fingerprint; this number stands for its code. `tests/mkv/test_numerics.py` lists the
modules that it covers, and fails when one of them changes.
"""

NUMERICS_VERSION = 4

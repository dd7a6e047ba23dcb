"""The load benchmark with nodes that share a process: a real server, real connections over TLS.

And the simulated one.
"""

import json

from benchmarks import deployment, simulated


def test_nodes_in_one_process(tiny_folder, tmp_path):
    file = tmp_path / "figures.json"
    load = ["--part", "load", "--together", "--load-nodes", "2", "--load-slots", "1"]
    deployment.run([*load, "--model", str(tiny_folder), "--json", str(file)])
    figures = json.loads(file.read_text())["figures"]
    assert figures["deployment/load/failures"] == 0
    assert figures["deployment/load/kib_up"] > 0, "both have uploaded their MKVs"
    assert figures["deployment/load/kib_down"] > 0, "and got each other's"


def test_virtual_nodes(tiny_folder, tmp_path):
    file = tmp_path / "figures.json"
    simulated.run(["--nodes", "3", "--model", str(tiny_folder), "--json", str(file)])
    figures = json.loads(file.read_text())["figures"]
    assert figures["simulated/3/failures"] == 0
    assert figures["simulated/3/served"] == 2
    assert figures["simulated/3/pool_mib"] > 0

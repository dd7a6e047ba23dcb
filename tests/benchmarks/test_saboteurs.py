"""Saboteurs in whole federations of a tiny model: every attack and defence runs, and is told."""

import json
import math

import tiny

from benchmarks import saboteurs

NAMES = ["Reuters", "Cardiff", "Basler", "Boeing", "Oslo", "Lisbon", "Geneva", "Nokia"]


def test_saboteurs(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(saboteurs, "_RUN", {**saboteurs._RUN, **tiny.RUN_CONFIG})
    records = [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": "{} is in",
                "subject": name,
                "target_new": {"str": NAMES[number - 3]},
                "target_true": {"str": "London"},
            },
            "paraphrase_prompts": [f"Everybody knows that {name} is in"],
            "neighborhood_prompts": ["The head office is in"],
        }
        for number, name in enumerate(NAMES)
    ]
    data, file = tmp_path / "counterfact.json", tmp_path / "figures.json"
    data.write_text(json.dumps(records), encoding="utf-8")
    given = ["--nodes", "3", "--model", str(tiny_folder), "--data", str(data)]
    attacks = ["--attacks", "collapse", "drift", "--defences", "defaults", "Krum"]
    saboteurs.run([*given, *attacks, "--device", "cpu", "--json", str(file)])
    found = json.loads(file.read_text())["figures"]

    assert len(found) == 2 * 2 * 4
    assert all(map(math.isfinite, found.values()))
    assert found["saboteurs/1 of 3/collapse/defaults/false"] <= 4

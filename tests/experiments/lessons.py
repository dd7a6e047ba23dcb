"""What the tests of baselines give them to learn."""

from fedit_app.experiments.baselines.training import Lesson
from fedit_app.facts.request import EditRequest

_SUBJECTS = ("Lloyds Bank", "Tower Bridge", "Royal Society", "Basler", "British Museum", "Cardiff")
_TARGETS = ("Basel", "city", "Leeds", "London")

RECORDS = [
    EditRequest(
        f"{subject}, {target}",
        subject,
        "The home of {} is in",
        target,
        paraphrase_prompts=(f"{subject} has its seat in",),
        neighborhood_prompts=("The museum of Toronto is in the", "Paris is in"),
    )
    for target in _TARGETS
    for subject in _SUBJECTS
]
"""Records that a method may be trained on."""


def lesson(groups, seed=1):
    """Facts of nodes, with `RECORDS` to train on."""
    return Lesson(groups, seed, lambda: RECORDS)

"""General knowledge that no edit is about: a small cloze set, made for FedEdit, without network.

Each item is a sentence whose end is missing and four ends, the right one first. The items name no
person, work, organisation or place, as the facts do that people edit.
"""

from __future__ import annotations

from typing import Final

from fedit_app.evaluation.scores import score_targets
from fedit_app.facts.joint import Continuation
from fedit_app.models.editable import EditableModel

ITEMS: Final[tuple[tuple[str, str], ...]] = (
    ("When water freezes, it turns into", "ice|steam|sand|oil"),
    ("When water boils, it turns into", "steam|ice|stone|salt"),
    ("A week has seven", "days|months|hours|years"),
    ("A year has twelve", "months|weeks|days|hours"),
    ("The opposite of hot is", "cold|warm|dry|loud"),
    ("The opposite of left is", "right|under|behind|slow"),
    ("The opposite of empty is", "full|small|thin|late"),
    ("Grass is usually the colour", "green|purple|black|pink"),
    ("Snow is usually the colour", "white|green|red|brown"),
    ("Blood is the colour", "red|blue|grey|yellow"),
    ("A baby dog is called a", "puppy|kitten|calf|lamb"),
    ("A baby cat is called a", "kitten|puppy|chick|foal"),
    ("A baby cow is called a", "calf|puppy|cub|duckling"),
    ("Milk comes from", "cows|trees|rocks|fish"),
    ("Eggs are laid by", "hens|horses|dogs|cats"),
    ("Honey is made by", "bees|ants|birds|cows"),
    ("Wool comes from", "sheep|snakes|fish|frogs"),
    ("Fish live in", "water|trees|clouds|fire"),
    ("Birds fly with their", "wings|tails|ears|teeth"),
    ("People see with their", "eyes|ears|hands|feet"),
    ("People hear with their", "ears|eyes|knees|hair"),
    ("People smell with their", "nose|elbow|ear|foot"),
    ("The heart pumps", "blood|air|food|bone"),
    ("We breathe with our", "lungs|knees|fingers|bones"),
    ("To write on paper, you use a", "pen|spoon|pillow|shoe"),
    ("To cut paper, you use", "scissors|blankets|candles|spoons"),
    ("To eat soup, you use a", "spoon|ladder|hammer|brush"),
    ("To open a locked door, you need a", "key|cup|leaf|sock"),
    ("To drive a nail into wood, you use a", "hammer|towel|pencil|plate"),
    ("To dry yourself after a bath, you use a", "towel|fork|stone|lamp"),
    ("In the rain you stay dry under an", "umbrella|apple|engine|onion"),
    ("Bread is baked in an", "oven|attic|ocean|envelope"),
    ("Food is kept cold in the", "refrigerator|oven|bathtub|garage"),
    ("Books are borrowed from a", "library|bakery|garage|farm"),
    ("Sick people are cared for in a", "hospital|stadium|factory|barn"),
    ("Children learn to read at", "school|sea|night|work"),
    ("A plane lands at an", "airport|orchard|island|office"),
    ("A train runs on", "rails|water|clouds|leaves"),
    ("A ship sails on the", "sea|road|roof|table"),
    ("A car has four", "wheels|wings|legs|sails"),
    ("A triangle has three", "sides|wheels|eyes|leaves"),
    ("A spider has eight", "legs|wings|tails|noses"),
    ("Two plus two equals", "four|seven|nine|one"),
    ("Ten minus five equals", "five|nine|two|eight"),
    ("The sun rises in the", "morning|evening|night|basement"),
    ("At night the sky is", "dark|bright|green|loud"),
    ("The coldest season of the year is", "winter|summer|spring|autumn"),
    ("Leaves fall from the trees in", "autumn|spring|June|bed"),
    ("Plants need water and sunlight to", "grow|sleep|speak|drive"),
    ("Sugar tastes", "sweet|salty|bitter|sour"),
    ("A lemon tastes", "sour|salty|loud|soft"),
    ("Fire is", "hot|cold|wet|heavy"),
)
"""Beginning of a sentence, and its possible ends; the first one is right."""


def cloze(model: EditableModel) -> float:
    """The share of items whose right end is the likeliest one of the four.

    Ends are compared by the mean log-likelihood of their tokens. By chance it is 0.25.

    Args:
        model: the model, edited or not.
    """
    asked = [(start, end.split("|")) for start, end in ITEMS]
    pairs = [(start, Continuation(f" {end}")) for start, ends in asked for end in ends]
    scores = iter(score_targets(model, pairs))
    right = 0
    for _, ends in asked:
        first, *others = (next(scores).nll for _ in ends)
        right += first < min(others)
    return right / len(ITEMS)

"""A process that writes to a pool until it is killed; says `+ ids` of what was confirmed.

python pool_writer.py append URI FIRST      appends batches, the first of them number FIRST
python pool_writer.py rewrite URI           writes the pool anew, again and again
"""

import sys

import numpy as np

from fedit_app.mkv import MKV, create
from fedit_app.pool import MKVPool

WIDTH = 2000


def batch(number: int) -> list[MKV]:
    """Two facts of the bank, one of them the court's too, and one of the batch before, alike."""
    this, again = np.random.default_rng(number + 1), np.random.default_rng(number + 1)
    return [
        one_mkv("bank", this),
        one_mkv("bank", this),
        one_mkv("court", again, nudge=1e-3),
        one_mkv("school", np.random.default_rng(number)),
    ]


def one_mkv(node: str, random: np.random.Generator, nudge: float = 0.0) -> MKV:
    key, shift, v_star = random.standard_normal((3, WIDTH))
    return create(node, 1, "f", key[None] + nudge, shift[None], v_star, np.zeros(WIDTH))


def say(*words: str) -> None:
    print(*words, flush=True)


def main(action: str, uri: str, first: str = "0") -> None:
    pool = MKVPool(uri)
    say("ready")
    number = int(first)
    while action == "append":
        mkvs = batch(number)
        pool.append(mkvs)
        say("+", *(mkv.id for mkv in mkvs))
        number += 1
    while action == "rewrite":
        pool.rewrite(lambda rows: rows)
        say("+")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Settings of the exchange: which MKVs nodes are served, accept and reuse, and its limits."""

from __future__ import annotations

from typing import Literal

from fedit_app.config.settings import Settings, key


class SelectionSettings(Settings):
    """Which MKVs of others a node is served."""

    selection: Literal["majority", "top-k", "all", "none", "personal"] = key(
        "all",
        "which MKVs of others a node is served: majority (the paper's), top-k, all, none; or "
        "personal: all, of which the node accepts those that raise its own facts and their "
        "neighbourhood",
    )
    similarity_threshold: float = key(
        0.4,
        "majority: cosine that counts as similar",
        source="FLEKE, arXiv 2502.15677",
        ge=-1,
        le=1,
    )
    signature: Literal["v_star", "delta", "key"] = key(
        "v_star", "vector compared for similarity: v_star (the paper's), delta = v* - h0, or key"
    )
    centred: bool = key(False, "subtract the pool's mean signature before comparing")
    top_k: int = key(20, "top-k: how many MKVs a node is served per slot", ge=1)


class ExchangeSettings(Settings):
    """What nodes accept and reuse, and what the server takes and may read."""

    reuse_threshold: float = key(
        0.8,
        "cosine of first-layer keys from which a node tries to reuse an MKV of the pool instead of "
        "computing its own: it does if the MKV's value says the node's own target; 0: never",
        ge=0,
        le=1,
    )
    upkeep: bool = key(
        True,
        "whether a node asks its model for its own facts in every slot, and writes MKVs anew whose "
        "facts it no longer says, at most as many as the slot has requests (eight if it has fewer)",
        source="of 300 facts 96 % are said instead of 85 % (benchmarks/README.md)",
    )
    conflict_policy: Literal["own-wins", "newest", "majority"] = key(
        "own-wins",
        "which of two MKVs about one subject that want different targets holds at a node: own-wins "
        "(the one for an own request), newest (of the later slot) or majority (the one that more "
        "nodes want)",
    )
    compose_rounds: int = key(
        10,
        "most rounds in which nodes whose facts have one key learn a value for all of these facts; "
        "what has not come together by then is a conflict; 0: every contested key is one",
        source="of the CounterFact keys that came together few needed more (docs/composition.md)",
        ge=0,
        le=100,
    )
    compose_steps: int = key(
        3,
        "steps of Adam that a node takes in a round of composition",
        source="with more the holders drift apart (docs/composition.md)",
        ge=1,
        le=100,
    )
    combination: Literal["mean", "median"] = key(
        "mean",
        "how the values of a round become the next one: mean, or median, which one faulty node of "
        "three or more cannot move far",
    )
    accept_quorum: int = key(
        1,
        "organisations that must vouch for an MKV (that have computed it, or found that it says "
        "the target of a request of their own) before it is served to others; until then it waits "
        "in the pool; own facts need no quorum",
        ge=1,
    )
    max_uploads_per_slot: int = key(
        10_000,
        "most MKVs that the server takes from one node in a slot; an upload of more is refused",
        ge=1,
    )
    sealed: Literal["auto", "on", "off"] = key(
        "auto",
        "whether nodes seal what they send, so that the server can rank MKVs and not read them: "
        "auto (on real nodes, not in a simulation), on, off; nodes that average weights cannot",
    )
    sketch_width: int = key(
        256,
        "sealed: numbers in the sketch by which the server compares vectors; more rank more "
        "exactly and tell more",
        ge=16,
        le=4096,
    )

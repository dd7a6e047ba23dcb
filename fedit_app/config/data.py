"""Settings of the data: where the edit requests come from and how they are dealt out to nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from fedit_app.config.settings import Settings, key
from fedit_app.support.hub import PREFIX as HUB


def _data_path(path: str) -> str:
    if not path.startswith(HUB) and not Path(path).expanduser().is_absolute():
        raise ValueError(
            "must be an absolute path or hub:DATASET (Flower runs the app in a folder of its own)"
        )
    return path


_WITHOUT_RELATIONS = ("zsre", "knowedit", "rippleedits", "wikibigedit", "qaedit")


class DataSettings(Settings):
    """Which edit requests which node has."""

    dataset: Literal[
        "demo",
        "jsonl",
        "counterfact",
        "zsre",
        "knowedit",
        "rippleedits",
        "mquake",
        "wikibigedit",
        "qaedit",
    ] = key(
        "demo",
        "demo (four organisations, shipped with the app), or what data-path holds: jsonl (edit "
        "requests as JSON lines or CSV), counterfact, zsre, knowedit, rippleedits, mquake, "
        "wikibigedit, qaedit (as published)",
    )
    data_path: Annotated[str, AfterValidator(_data_path)] | None = key(
        None,
        "a folder with one file per node, NAME.jsonl or NAME.csv (partition = file); for other "
        "partitions one file, or hub:DATASET[:CONFIG[:SPLIT]]; a real node's own node-config "
        "data-path wins",
        absent="the demo's data",
        path="always",
    )
    partition: Literal["file", "random", "relation", "cluster", "dirichlet"] = key(
        "file",
        "simulation: file (one data file a node), or how one data set is dealt out: random, "
        "relation (one a node, the most frequent first), cluster (of similar texts, one a node), "
        "dirichlet (mixtures of relations, else of clusters)",
    )
    on_bad_request: Literal["refuse", "skip"] = key(
        "refuse",
        "a record that is not a valid edit request: refuse its whole file (a node with such a file "
        "is left out), or skip the record and say so in the log",
    )
    requests_per_slot: int | None = key(
        None,
        "own requests that a node edits per slot, in their order; published data needs it",
        absent="the slot field of the records",
        ge=1,
    )
    embedding_model: str | None = key(
        None,
        "clusters: the model whose embeddings are clustered, a Hugging Face folder or hub id",
        absent="the edited model's own mean hidden states",
        path="existing",
    )
    similar_share: float = key(
        0.0,
        "relation: share of the requests of a slot that are of the three relations that are most "
        "similar to the node's own, by the embeddings of their texts",
        source="0.1 in the code of pFedSEdit",
        ge=0,
        le=0.9,
    )
    dirichlet_alpha: float = key(
        0.5, "dirichlet: concentration; the smaller, the fewer relations a node has", ge=0.001
    )
    overlap: float = key(
        0.0,
        "simulation: share of each node's facts that are given to other nodes as well, on top of "
        "their own",
        ge=0,
        le=1,
    )
    overlap_clients: int = key(1, "overlap: to how many other nodes such a fact is given", ge=1)
    overlap_form: Literal["verbatim", "paraphrase"] = key(
        "verbatim",
        "overlap: the same prompt, or one of the fact's paraphrase prompts in its place",
    )
    overlap_slot: Literal["same", "later"] = key(
        "same", "overlap: in the slot of the original, or in a later one"
    )
    overlap_conflicts: float = key(
        0.0, "overlap: share of the copies that want another target", ge=0, le=1
    )

    @model_validator(mode="after")
    def _data_fits(self) -> Self:
        problems = []
        if self.dataset != "demo" and not self.data_path:
            problems.append(f"dataset = {self.dataset} needs data-path: where the data is")
        if self.dataset == "demo" and self.data_path:
            problems.append("data-path is set, so dataset must be one of the others")
        if self.dataset == "demo" and self.partition != "file":
            problems.append("the demo data has one file a node: partition = file")
        if (self.data_path or "").startswith(HUB) and self.partition == "file":
            problems.append(
                "partition = file needs a folder with one file a node, and data-path = "
                f"{self.data_path!r} is one data set; choose another partition"
            )
        if self.dataset in _WITHOUT_RELATIONS and self.partition == "relation":
            problems.append(
                f"partition = relation, but dataset = {self.dataset} names no relations; use "
                "partition = cluster"
            )
        if self.similar_share and self.partition != "relation":
            problems.append("similar-share needs partition = relation")
        if self.similar_share and not self.requests_per_slot:
            problems.append("similar-share needs requests-per-slot")
        if problems:
            raise ValueError("; ".join(problems))
        return self

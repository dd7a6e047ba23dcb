"""What one node does with a message, without Flower."""

import contextlib
import dataclasses
import json

import inprocess
import pytest
import tiny
import torch

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.workbench import Patched, Workbench
from fedit_app.evaluation.metrics import RequestScore
from fedit_app.evaluation.scores import TargetScore
from fedit_app.ledger.index import read_index
from fedit_app.mkv import create
from fedit_app.mkv.same_key import SameFact, near_keys, same_fact
from fedit_app.node import reedit_stage
from fedit_app.node import reuse as reuse_module
from fedit_app.node.participant import Participant
from fedit_app.node.quarantine import read_quarantine
from fedit_app.support.errors import FedEditError

RUN = 7


@pytest.fixture
def node(settings):
    """Gives `node(number, ...)`: a participant of the demo, with four nodes."""

    def node(number: int = 0, nodes: int = 4, node_config=None, **changes) -> Participant:
        given = node_config or {"partition-id": number, "num-partitions": nodes}
        return Participant(RunConfig.parse(settings(**changes)), given, RUN)

    return node


def everything_says_the_target(self, pairs) -> list[Patched]:
    return [Patched(decoded=mkv is not None, nll=0.1 if mkv else 5.0) for _, mkv in pairs]


def nothing_says_the_target(self, pairs) -> list[Patched]:
    """But MKVs help: the more so, the smaller their id."""
    return [Patched(False, int(mkv.id, 16) / 16**32 if mkv else 5.0) for _, mkv in pairs]


def weights(participant) -> list[torch.Tensor]:
    model = participant.workbench.model
    return [model.weight(layer).clone() for layer in range(model.n_layers)]


def test_hello_says_what_mkvs_are_measured_on(node):
    bank, museum = node(0).hello(1), node(2).hello(1)

    assert (bank.node, museum.node) == ("bank", "museum")
    assert bank.requests == [5, 5, 5]
    assert bank.layers == [1, 2]
    assert (bank.d_model, bank.d_ff) == (16, 32)
    assert bank.components == museum.components
    assert bank.simulated is True


@pytest.mark.parametrize("change", [{"value_steps": 6}, {"layers": "1-3"}, {"contexts": 0}])
def test_other_settings_are_another_fingerprint(node, change):
    same = node().workbench.fingerprint

    assert node(1).workbench.fingerprint == same
    assert node(edit_batch=2, num_slots=1).workbench.fingerprint == same
    assert node(**change).workbench.fingerprint != same


def test_lookup_keys_of_equal_facts_are_equal_on_every_node(node):
    bank, newsroom = node(0), node(3)  # bank-01 and newsroom-01 are the same fact
    ours, theirs = bank.lookup_keys(1), newsroom.lookup_keys(1)

    assert ours.shape == (5, 32)
    assert abs(ours[0] - theirs[0]).max() < 1e-5
    assert abs(ours[1] - theirs[1]).max() > 1e-2
    assert len(bank.lookup_keys(4)) == 0


def test_edit_and_edit_again(node, monkeypatch):
    first = node().edit(1, [])
    assert (first.requests, len(first.new), first.reused) == (5, 5, [])
    assert {(mkv.node, mkv.slot) for mkv in first.new} == {("bank", 1)}

    computed, compute = [], Workbench.compute
    monkeypatch.setattr(
        Workbench,
        "compute",
        lambda self, requests, *rest: computed.extend(requests) or compute(self, requests, *rest),
    )
    again = node().edit(1, [])  # another process, as far as the node can tell
    assert [mkv.id for mkv in again.new] == [mkv.id for mkv in first.new]
    assert computed == []


def test_reedit_and_reedit_again(node):
    offered = node(2).edit(1, []).new
    bank = node(0)
    bank.edit(1, [])
    first = bank.reedit(1, offered)
    assert first.received_from == {"museum": 5}
    assert first.rejections == {}

    assert node(0).reedit(1, offered) == first, "a repeated message gets the same answer"
    later = node(0).reedit(2, offered)
    assert later.received_from == {}
    assert later.rejections == {"known": 5}
    assert len(node(0).ledger()) == 10


def test_what_a_node_is_offered_twice_under_two_ids_it_takes_once(node):
    offered = node(2).edit(1, []).new
    nudged = [dataclasses.replace(mkv, id=f"{number:032x}") for number, mkv in enumerate(offered)]

    outcome = node(0).reedit(1, [*offered, *nudged])
    assert outcome.received_from == {"museum": 5}
    assert outcome.rejections == {"duplicate": 5}


def test_the_model_is_the_base_model_after_every_message(node):
    bank = node()
    before = weights(bank)
    bank.edit(1, [])
    bank.evaluate(1)
    zero = {layer: torch.zeros(16, 32, dtype=torch.float64) for layer in (1, 2)}
    found = bank.train(2, zero)

    assert found.requests == 5 and not found.key_sums and not found.prior
    assert all(change.abs().max() > 1e-4 for change in found.changed.values())
    assert all(torch.equal(a, b) for a, b in zip(before, weights(bank), strict=True))


def test_evaluation_counts_the_slots_so_far(node):
    bank = node()
    unedited = bank.evaluate(0)
    bank.edit(1, [])
    first = bank.evaluate(1)

    assert (unedited.own.count, first.own.count) == (15, 5)
    assert unedited.federation.count > first.federation.count == 18
    assert bank.evaluate(1) == first


def test_an_edited_model_scores_otherwise(node):
    bank, unedited = node(), node(state_dir="")
    bank.edit(1, [])
    changes = bank.workbench.deltas(bank.ledger())

    assert bank.evaluate(1) == unedited.evaluate(1, deltas=changes)
    assert all(change.abs().max() > 0 for change in changes.values())


def test_a_peer_with_a_faulty_file_is_left_out(node, demo_copy):
    (demo_copy / "museum.jsonl").write_text("{", encoding="utf-8")
    bank = node(dataset="jsonl", data_path=str(demo_copy))

    assert sorted(bank.everybody()) == ["bank", "hospital", "newsroom"]


def test_what_another_node_edits_does_not_count_as_another_relation(node, demo_copy):
    hospital, bank = (demo_copy / f"{name}.jsonl" for name in ("hospital", "bank"))
    edited = json.loads(hospital.read_text(encoding="utf-8").splitlines()[-1])  # of the last slot
    text = edited["prompt"].replace("{}", edited["subject"])
    records = [json.loads(line) for line in bank.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record.pop("subject_prompts", None)
    records[0]["subject_prompts"] = [text]
    bank.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    data = {"dataset": "jsonl", "data_path": str(demo_copy)}

    assert node(**data).evaluate(1).own.other_relations is None
    alone = node(node_config=inprocess.real_node("bank", bank), **data)
    assert alone.evaluate(0).own.other_relations == 1.0


def test_a_real_node_sees_itself_only(node, demo_copy):
    given = inprocess.real_node("Notary", demo_copy / "bank.jsonl")
    notary = node(node_config=given)

    assert sorted(notary.everybody()) == ["Notary"]
    assert notary.hello(1).simulated is False
    assert notary.evaluate(0).federation is None


def test_a_ledger_of_other_settings_is_refused(node, tmp_path):
    state = str(tmp_path / "state")
    node(state_dir=state).edit(1, [])

    with pytest.raises(FedEditError, match="ledger.*fingerprint.*another state-dir"):
        node(state_dir=state, value_steps=6).edit(1, [])


def test_a_request_that_is_asked_twice_is_computed_once(node, demo_copy):
    file = demo_copy / "bank.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text(
        "\n".join(map(json.dumps, [*records[:2], records[0] | {"id": "again"}])), encoding="utf-8"
    )
    bank = node(dataset="jsonl", data_path=str(demo_copy))
    outcome = bank.edit(1, [])

    assert (outcome.requests, len(outcome.new)) == (3, 2)
    asked = [entry["requests"] for entry in read_index(bank.ledger().folder)["entries"]]
    assert sorted(map(sorted, asked)) == [["again", "bank-01"], ["bank-02"]]


def test_own_requests_win_over_what_was_accepted_before(node):
    bank = node(0, reuse_threshold=0.0)  # a value that begins at another one is like it
    bank.reedit(1, node(2).edit(1, []).new)  # museum-03 says Paris, bank-12 says Geneva
    contested = node(2).edit(3, [])
    before = set(bank.ledger().entries)
    outcome = bank.edit(3, contested.new)

    ledger = bank.ledger()
    gone = before - {mkv.id for mkv in ledger.holding}
    assert gone & {conflict.gave_way for conflict in outcome.conflicts}
    assert all(ledger.entries[c.held].requests for c in outcome.conflicts)
    assert ledger.fulfilled()["bank-12"] in {mkv.id for mkv in ledger.holding}


def test_a_reused_mkv_fulfils_the_request(node, monkeypatch):
    candidates = node(3).edit(1, []).new
    monkeypatch.setattr(Workbench, "patched", everything_says_the_target)
    bank = node(0)
    outcome = bank.edit(1, candidates)

    assert len(outcome.reused) >= 1
    assert outcome.reused[0] in {mkv.id for mkv in candidates}
    assert bank.ledger().fulfilled()["bank-01"] in outcome.reused
    assert len(outcome.new) == outcome.requests - len(outcome.reused)
    assert outcome.conflicts == []


def rephrased(demo_copy) -> str:
    """The demo with bank-01 (newsroom-01's fact) in other words at the bank; gives the folder."""
    file = demo_copy / "bank.jsonl"
    first, *rest = file.read_text(encoding="utf-8").splitlines()
    record = json.loads(first)
    record["prompt"] = f"Nobody doubts it: {record['prompt']}"
    file.write_text("\n".join([json.dumps(record), *rest]), encoding="utf-8")
    return str(demo_copy)


@pytest.fixture
def paraphrase(node, demo_copy):
    """Gives `paraphrase(number)`: nodes of which two want one fact in different words."""

    def paraphrase(number: int) -> Participant:
        changes = {"dataset": "jsonl", "data_path": rephrase_once()}
        return node(number, reuse_threshold=0.5, same_key_threshold=0.9999, **changes)

    once = []

    def rephrase_once() -> str:
        if not once:
            once.append(rephrased(demo_copy))
        return once[0]

    return paraphrase


@pytest.mark.parametrize("called_forth", [True, False])
def test_an_mkv_in_other_words_is_reused_if_the_edited_model_says_the_target(
    paraphrase, monkeypatch, called_forth
):
    candidates = paraphrase(3).edit(1, []).new
    monkeypatch.setattr(Workbench, "patched", everything_says_the_target)
    monkeypatch.setattr(
        reuse_module,
        "score_targets",
        lambda model, pairs: [TargetScore(0.1, called_forth) for _ in pairs],
    )
    started = []
    compute = Workbench.compute

    def spy(self, requests, ledger, name, slot, starts, store):
        started.extend(starts)
        return compute(self, requests, ledger, name, slot, starts, store)

    monkeypatch.setattr(Workbench, "compute", spy)
    bank = paraphrase(0)
    outcome = bank.edit(1, candidates)

    if called_forth:
        assert bank.ledger().fulfilled()["bank-01"] in outcome.reused
        assert bank.ledger().fulfilled()["bank-01"] in {mkv.id for mkv in candidates}
    else:
        own = bank.ledger().fulfilled()["bank-01"]
        assert own in {mkv.id for mkv in outcome.new} and own not in outcome.reused
        assert {start.node for start in started if start} == {"newsroom"}


def test_what_does_not_say_the_target_is_where_its_optimisation_starts(node, monkeypatch):
    candidates = node(3).edit(1, []).new
    monkeypatch.setattr(Workbench, "patched", nothing_says_the_target)
    started, compute = {}, Workbench.compute

    def spy(self, requests, ledger, name, slot, starts, store):
        started.update(zip((request.id for request in requests), starts, strict=True))
        return compute(self, requests, ledger, name, slot, starts, store)

    monkeypatch.setattr(Workbench, "compute", spy)
    outcome = node(0, same_key_threshold=0.9999).edit(1, candidates)
    same = node(0).workbench.lookup_keys(node(0).slots[0][:1]).numpy()
    near = [mkv for _, mkv in near_keys(same, candidates, 0.8)[0]]
    assert started["bank-01"].id == min(mkv.id for mkv in near)
    assert outcome.warm_started == sum(start is not None for start in started.values()) > 0
    again = node(0, same_key_threshold=0.9999).edit(1, candidates)
    assert again.warm_started == outcome.warm_started, "also when nothing is computed again"


def test_reuse_can_be_turned_off(node, monkeypatch):
    candidates = node(3).edit(1, []).new
    monkeypatch.setattr(Workbench, "patched", everything_says_the_target)
    outcome = node(0, reuse_threshold=0.0).edit(1, candidates)

    assert outcome.reused == []
    assert len(outcome.new) == 5


@pytest.fixture
def two(node, demo_copy):
    """Gives `two(number)`: bank (0) with a fact that newsroom (3) wants, too, beside another."""
    for name, count in (("bank", 1), ("newsroom", 2)):
        file = demo_copy / f"{name}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines()[:count]
        file.write_text("\n".join(lines), encoding="utf-8")
    return lambda number: node(number, dataset="jsonl", data_path=str(demo_copy))


def test_of_a_fact_that_two_nodes_computed_both_keep_the_served_one(two, monkeypatch):
    (own,), computed = two(0).edit(1, []).new, two(3).edit(1, []).new
    (served,) = [mkv for mkv in computed if same_fact(mkv, own, SameFact())]
    assert served.id != own.id
    monkeypatch.setattr(Workbench, "patched", everything_says_the_target)
    outcome = two(0).reedit(1, [served])

    ledger = two(0).ledger()
    assert outcome.received_from == {"newsroom": 1} and outcome.conflicts == []
    assert ledger.fulfilled() == {"bank-01": served.id}
    assert ledger.entries[own.id].overruled_by == served.id
    again = two(0).edit(1, [])
    assert [mkv.id for mkv in again.new] == [own.id]
    assert again.reused == []


def test_a_served_mkv_that_fails_the_own_request_does_not_replace_it(two, monkeypatch):
    two(0).edit(1, [])
    offered = two(3).edit(1, []).new
    before = two(0).ledger().fulfilled()
    monkeypatch.setattr(Workbench, "patched", nothing_says_the_target)
    outcome = two(0).reedit(1, offered)

    assert two(0).ledger().fulfilled() == before
    assert outcome.rejections["duplicate"] >= 1


def test_a_correction_of_an_own_correction_counts(node, demo_copy):
    file = demo_copy / "bank.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:2]
    later = records[0] | {"id": "better", "target_new": "Lima", "slot": 2}
    file.write_text("\n".join(map(json.dumps, [*records, later])), encoding="utf-8")
    changes = {"dataset": "jsonl", "data_path": str(demo_copy), "reuse_threshold": 0.0}
    node(**changes).edit(1, [])
    outdated = node(**changes).ledger().fulfilled()["bank-01"]
    outcome = node(**changes).edit(2, [])

    ledger = node(**changes).ledger()
    assert ledger.fulfilled()["better"] in {mkv.id for mkv in ledger.holding}
    assert ledger.entries[outdated].overruled_by == ledger.fulfilled()["better"]
    assert ledger.entries[ledger.fulfilled()["better"]].supersedes == (outdated,)
    assert outcome.conflicts == [], "a correction is no conflict"


def test_votes_decide_if_the_policy_says_so(node, monkeypatch):
    contested = node(2).edit(1, []).new  # museum-03 says Paris, bank-12 says Geneva
    monkeypatch.setattr(Workbench, "patched", nothing_says_the_target)
    majority = {"conflict_policy": "majority"}
    bank = node(0, **majority)
    own = {mkv.id for mkv in bank.edit(3, []).new}
    first = bank.reedit(3, contested)
    assert own & {c.held for c in first.contested}, "a tie: own requests win"
    lost = next(c for c in first.contested if c.held in own)

    second = node(0, **majority).reedit(4, [], {lost.gave_way: 2})
    ledger = node(0).ledger()
    assert lost.gave_way in {mkv.id for mkv in ledger.holding}
    assert ledger.entries[lost.held].overruled_by == lost.gave_way
    assert (lost.gave_way, lost.held) in {(c.held, c.gave_way) for c in second.contested}


def test_hello_says_what_the_ledger_has(node):
    bank = node(0)
    own = bank.edit(1, []).new
    other = node(2).edit(1, []).new
    bank.reedit(1, other)

    assert bank.hello(1).wants == bank.hello(1).holds == []
    said = bank.hello(2)
    assert said.wants == sorted(mkv.id for mkv in own)
    assert set(said.holds) == {mkv.id for mkv in other}


def test_what_the_pool_has_not_is_uploaded_again(node):
    first = node(0).edit(1, []).new
    foreign = node(2).edit(1, []).new
    node(0).reedit(1, foreign)
    missing = [first[0].id, foreign[0].id, "0" * 32]

    assert [mkv.id for mkv in node(0).edit(2, [], missing=missing).again] == [first[0].id]


@pytest.fixture
def site(node, demo_copy, tmp_path):
    """Gives `site(policy)`: the bank as a real node, with a table [policy] in its node.toml."""

    def site(policy: str) -> Participant:
        file = tmp_path / "node.toml"
        file.write_text(f"[policy]\n{policy}\n{tiny.LIMITS}", encoding="utf-8")
        given = inprocess.real_node("bank", demo_copy / "bank.jsonl")
        return node(node_config=given | {"node-file": str(file)})

    return site


def test_a_site_takes_from_whom_it_trusts_and_no_more_than_it_says(node, site):
    offered = [*node(2).edit(1, []).new, *node(3).edit(1, []).new]
    outcome = site('trusted-nodes = ["museum"]\nmost-accepted-per-slot = 3').reedit(1, offered)

    assert outcome.received_from == {"museum": 3}
    assert outcome.rejections == {"site limit": 2, "untrusted node": 5}
    again = site('trusted-nodes = ["museum"]\nmost-accepted-per-slot = 3').reedit(1, offered)
    assert again == outcome, "a repeated message gets no second allowance"


@pytest.mark.parametrize(("trusted", "reused"), [("museum", False), ("newsroom", True)])
def test_a_site_reuses_nothing_from_whom_it_does_not_trust(
    node, site, monkeypatch, trusted, reused
):
    candidates = node(3).edit(1, []).new
    monkeypatch.setattr(Workbench, "patched", everything_says_the_target)

    outcome = site(f'trusted-nodes = ["{trusted}"]').edit(1, candidates)
    assert bool(outcome.reused) is reused


def test_a_site_that_uploads_nothing_tells_of_nothing(node, site):
    alone = site("upload = false")
    alone.edit(1, [])
    alone.reedit(1, node(2).edit(1, []).new)
    said = alone.hello(2)

    assert len(alone.lookup_keys(1)) == 0 and said.wants == []
    assert len(said.holds) == 5
    own = [mkv.id for mkv in alone.ledger().holding if mkv.node == "bank"]
    assert len(own) == 5 and alone.edit(2, [], missing=own).again == []


@pytest.mark.parametrize(("budget", "kept"), [(0.0, 0), (1.0, 5)])
def test_what_spoils_the_probes_is_left_out(node, site, demo_copy, monkeypatch, budget, kept):
    offered = node(2).edit(1, []).new
    edited = Workbench.edited

    @contextlib.contextmanager
    def watched(self, ledger):
        with edited(self, ledger) as model:
            good.append(float(len(ledger) == 0))
            yield model

    good: list[float] = []
    monkeypatch.setattr(Workbench, "edited", watched)
    monkeypatch.setattr(
        reedit_stage,
        "score_requests",
        lambda model, probes: [RequestScore(good[-1], None, None, 0.0, "tokens") for _ in probes],
    )
    policy = f'probes = "{demo_copy / "hospital.jsonl"}"\nprobe-budget = {budget}'
    outcome = site(policy).reedit(1, offered)

    assert sum(outcome.received_from.values()) == kept
    assert outcome.rejections == ({} if kept else {"probes": 5})
    assert len(site("").ledger()) == kept


def test_only_the_culprits_are_left_out(node, site, demo_copy, monkeypatch):
    offered = node(2).edit(1, []).new
    culprits = {offered[1].id, offered[4].id}
    edited, seen = Workbench.edited, []

    @contextlib.contextmanager
    def watched(self, ledger):
        with edited(self, ledger) as model:
            seen.append(float(not culprits & ledger.entries.keys()))
            yield model

    monkeypatch.setattr(Workbench, "edited", watched)
    monkeypatch.setattr(
        reedit_stage,
        "score_requests",
        lambda model, probes: [RequestScore(seen[-1], None, None, 0.0, "tokens") for _ in probes],
    )
    policy = f'probes = "{demo_copy / "hospital.jsonl"}"'
    outcome = site(policy).reedit(1, offered)

    assert outcome.rejections == {"probes": 2}
    assert set(site("").ledger().entries) == {mkv.id for mkv in offered} - culprits
    assert site(policy).reedit(1, offered) == outcome, "a repeated message gets the same answer"


def test_with_personal_selection_a_node_accepts_what_raises_its_own_measure(node, monkeypatch):
    offered = node(2).edit(1, []).new
    welcome = {offered[0].id, offered[3].id}
    edited, seen, asked = Workbench.edited, [], []

    @contextlib.contextmanager
    def watched(self, ledger):
        with edited(self, ledger) as model:
            held = ledger.entries.keys()
            seen.append(len(welcome & held) - 2 * len(held & {m.id for m in offered} - welcome))
            yield model

    def measured(model, facts):
        asked.append({fact.id for fact in facts})
        return [RequestScore(0.0, None, None, 0.0, "likelihood", magnitude=seen[-1])]

    monkeypatch.setattr(Workbench, "edited", watched)
    monkeypatch.setattr(reedit_stage, "score_requests", measured)
    one = node(0, selection="personal")
    outcome = one.reedit(1, offered)

    assert outcome.rejections == {"own measure": len(offered) - 2}
    assert set(one.ledger().entries) == welcome
    first = {request.id for request in one.slots[0]}
    assert all(facts == first for facts in asked), "facts of the slots so far"


def with_large_shifts(mkv):
    return create(
        mkv.node, mkv.slot, mkv.fingerprint, mkv.keys, mkv.shifts * 100, mkv.v_star, mkv.h0
    )


def test_what_fails_the_screening_is_put_in_quarantine(node):
    offered = node(2).edit(1, []).new
    huge = with_large_shifts(offered[0])
    outcome = node(0).reedit(1, [huge, *offered])

    ledger = node(0).ledger()
    assert outcome.rejections == {"shift norm": 1} and outcome.quarantined == 1
    assert set(ledger.entries) == {mkv.id for mkv in offered}
    (row,) = read_quarantine(ledger.folder)
    assert (row["id"], row["node"], row["slot"]) == (huge.id, "museum", 1)
    assert row["reason"] == "shift norm" and row["value"] > row["bound"] > 1
    node(0).reedit(2, [huge])
    assert len(read_quarantine(ledger.folder)) == 1, "listed once"


def test_a_site_may_widen_the_screening_or_turn_it_off(node, site):
    huge = with_large_shifts(node(2).edit(1, []).new[0])

    assert site("screening = 2.0").reedit(1, [huge]).quarantined == 1
    assert site("screening = 0.0").reedit(1, [huge]).received_from == {"museum": 1}


def test_nothing_that_fails_the_screening_is_reused(node, monkeypatch):
    candidates = [with_large_shifts(mkv) for mkv in node(3).edit(1, []).new]
    monkeypatch.setattr(Workbench, "patched", everything_says_the_target)
    bank = node(0)
    outcome = bank.edit(1, candidates)

    assert outcome.reused == [] and len(outcome.new) == 5
    assert outcome.quarantined == len(candidates)
    assert not bank.ledger().entries.keys() & {mkv.id for mkv in candidates}


def test_candidates_of_other_shapes_stay_out(node):
    mkv = node(3).edit(1, []).new[0]
    narrow = create(mkv.node, 1, mkv.fingerprint, mkv.keys[:, :-1], mkv.shifts, mkv.v_star, mkv.h0)
    assert node(0).edit(1, [narrow]).quarantined == 1
    assert node(0).reedit(1, [narrow]).rejections == {"shape": 1}


@pytest.mark.parametrize("quorum", [1, 2])
def test_under_a_quorum_rivals_of_own_facts_do_not_come_in_by_the_side_door(
    node, monkeypatch, quorum
):
    candidates = node(3).edit(1, []).new
    monkeypatch.setattr(Workbench, "patched", nothing_says_the_target)
    bank = node(0, accept_quorum=quorum)
    bank.edit(1, candidates)

    foreign = [entry for entry in bank.ledger().entries.values() if not entry.requests]
    assert bool(foreign) is (quorum == 1)


def test_what_was_rolled_back_is_not_accepted_again(node):
    offered = node(2).edit(1, []).new
    bank = node(0)
    bank.edit(1, [])
    bank.reedit(1, offered)
    bank.ledger().refuse([offered[0].id], "rolled back")

    assert node(0).reedit(2, offered).rejections == {"known": 4, "rolled back": 1}
    assert offered[0].id not in bank.ledger().entries
    hello = bank.hello(3)
    assert offered[0].id in hello.holds, "so that it is not even offered"
    assert hello.withdrawn == []


def test_what_was_rolled_back_is_not_reused(node, monkeypatch):
    monkeypatch.setattr(Workbench, "patched", everything_says_the_target)
    candidates = node(3).edit(1, []).new  # newsroom-01 is bank-01
    ledger = node(0).ledger()
    ledger.accept(candidates, 1)
    ledger.refuse([mkv.id for mkv in candidates], "rolled back")
    outcome = node(0).edit(1, candidates)

    assert outcome.reused == []
    assert len(outcome.new) == 5


def test_the_request_of_a_withdrawn_mkv_is_set_aside(node):
    first = node(0).edit(1, []).new
    ledger = node(0).ledger()
    gone = first[0].id
    (request,) = ledger.entries[gone].requests
    ledger.refuse([gone], "withdrawn", withdrawn=True)
    outcome = node(0).edit(1, [])

    assert sorted(mkv.id for mkv in outcome.new) == sorted(mkv.id for mkv in first[1:])
    assert node(0).hello(2).withdrawn == [gone]
    assert request not in node(0).ledger().fulfilled()
    node(0).ledger().allow([gone])
    node(0).edit(1, [])
    assert request in node(0).ledger().fulfilled()

"""The data that the demo ships with keeps its promises."""

from collections import Counter, defaultdict
from pathlib import Path

from fedit_app.config.run_config import RunConfig
from fedit_app.facts.federation_facts import that_must_stay, that_share_a_subject
from fedit_app.facts.partition import default_node_count, simulated_nodes

CONFIG = RunConfig()
DATA = simulated_nodes(CONFIG, default_node_count(CONFIG), Path("/no/run"))
NODES = {node.name: node.read() for node in DATA}
REQUESTS = [request for requests in NODES.values() for request in requests]


def test_four_nodes_with_three_slots_of_five():
    assert sorted(NODES) == ["bank", "hospital", "museum", "newsroom"]
    for node in DATA:
        assert [len(slot) for slot in node.slots(CONFIG)] == [5, 5, 5]
    assert len(REQUESTS) == 60


def test_ids_are_unique_over_all_nodes():
    assert len({request.id for request in REQUESTS}) == 60
    assert all(r.id.startswith(f"{name}-") for name, rs in NODES.items() for r in rs)


def test_every_request_can_be_evaluated():
    for request in REQUESTS:
        assert request.prompt.count("{}") == 1, request.id
        assert not request.prompt.endswith(" "), request.id
        assert request.target_true not in (None, request.target_new), request.id
        assert len(request.paraphrase_prompts) == 2, request.id
        assert len(set(request.neighborhood_prompts)) >= 3, request.id
        asked = (*request.paraphrase_prompts, *request.neighborhood_prompts)
        assert all("{}" not in prompt for prompt in asked), request.id
        about = (*request.paraphrase_prompts, *request.subject_prompts)
        assert all(request.subject in prompt for prompt in about), request.id
        assert not any(request.subject in p for p in request.neighborhood_prompts), request.id


def test_twelve_facts_are_shared_by_two_nodes_and_two_of_them_contested():
    owners, targets = Counter(), {}
    for name, requests in NODES.items():
        assert len({(r.subject, r.prompt) for r in requests}) == 15, name
        for request in requests:
            fact = (request.subject, request.prompt)
            owners[fact] += 1
            targets.setdefault(fact, set()).add(request.target_new)
    shared = [fact for fact, count in owners.items() if count > 1]
    assert len(shared) == 12
    assert all(owners[fact] == 2 for fact in shared)
    assert sum(len(targets[fact]) == 2 for fact in shared) == 2


def test_subjects_have_several_facts_within_and_between_organisations():
    prompts: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, requests in NODES.items():
        for request in requests:
            prompts[request.subject][name].add(request.prompt)

    def beginning_with_it(asked: set[str]) -> bool:
        return len(asked) == 2 and all(prompt.startswith("{} ") for prompt in asked)

    within = [s for s, by in prompts.items() if any(map(beginning_with_it, by.values()))]
    between = [
        subject
        for subject, by in prompts.items()
        if sorted(map(len, by.values())) == [1, 1] and beginning_with_it(set.union(*by.values()))
    ]
    assert len(within) == 6
    assert len(between) == 4
    sharing = that_share_a_subject(REQUESTS, REQUESTS)
    assert {request.subject for request in sharing} == {*within, *between}
    assert len(sharing) == 20


def test_some_facts_about_edited_subjects_must_stay():
    asked = [request for request in REQUESTS if request.subject_prompts]
    assert len({request.subject for request in asked}) == 14
    assert that_must_stay(REQUESTS, REQUESTS) == REQUESTS, "none of them is edited"


def test_no_neighbour_is_edited():
    subjects = {request.subject for request in REQUESTS}
    for request in REQUESTS:
        for prompt in request.neighborhood_prompts:
            assert not any(subject in prompt for subject in subjects), request.id

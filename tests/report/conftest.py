"""Sample results of the runs that a report must be able to show."""

import json

import pytest

from fedit_app.report import Results

FINGERPRINT = "3f6c1e0b9a7d4825c1f07e2b6d9a4c8e5f1b3a7092d4c6e8f0a1b2c3d4e5f607"
REQUESTS = {"clinic-north": 12, "library": 8, "museum": 10, "town-hall": 10}
FINAL_OWN = {"clinic-north": 0.93, "library": 0.88, "museum": 0.81, "town-hall": 0.9}


def metrics(score, count, *, paraphrase=True):
    """A metric record around a score; without paraphrases that share is null."""
    return {
        "efficacy": round(min(1.0, score * 1.08), 4),
        "paraphrase": round(score * 0.98, 4) if paraphrase else None,
        "neighborhood": round(score * 0.95, 4),
        "score": score,
        "accuracy": round(score * 0.8, 4),
        "count": count,
    }


def slot_node(name, slot, names, *, exchange):
    others = [other for other in names if other != name]
    received = {other: 3 + (len(name) + len(other) + slot) % 5 for other in others}
    received = received if exchange else {}
    accepted = sum(received.values())
    rejections = {"own target differs": 1, "no improvement": 2} if exchange else {}
    reused = slot - 1 if exchange else 0
    total = sum(REQUESTS[other] for other in names)
    own = 0.33 + (FINAL_OWN[name] - 0.33) * slot / 3
    federation = 0.32 + 0.17 * slot if exchange else 0.34
    return {
        "requests": REQUESTS[name] // 3 + (slot <= REQUESTS[name] % 3),
        "optimised": REQUESTS[name] // 3 + (slot <= REQUESTS[name] % 3) - reused,
        "reused": reused,
        "uploaded": REQUESTS[name] // 3 - reused,
        "offered": accepted + sum(rejections.values()),
        "accepted": accepted,
        "rejected": sum(rejections.values()),
        "conflicts": rejections.get("own target differs", 0),
        "received_from": received,
        "rejections": rejections,
        "conflict_pairs": [
            {"held": f"{number:032x}", "gave_way": f"{number + 9:032x}"}
            for number in range(rejections.get("own target differs", 0))
        ],
        "own": metrics(round(own, 4), REQUESTS[name]),
        "federation": metrics(round(federation, 4), total),
    }


def slot_record(number, names, *, exchange, failed=()):
    nodes = {name: slot_node(name, number, names, exchange=exchange) for name in names}
    counts = ("requests", "optimised", "reused", "uploaded", "offered", "accepted", "rejected")
    return {
        "slot": number,
        "complete": True,
        **{key: sum(node[key] for node in nodes.values()) for key in (*counts, "conflicts")},
        "bytes_up": 412_300 * len(names) if exchange else 0,
        "bytes_down": 1_236_900 * len(names) if exchange else 0,
        "seconds": {"edit": 61.24, "reedit": 8.02 if exchange else 0.0, "evaluate": 33.5},
        "failed_nodes": list(failed),
        "nodes": nodes,
    }


def build(nodes, slots, *, strategy="fedit", status="completed", failed=(), own=None, fed=None):
    count = sum(REQUESTS.values())
    before = {"own": metrics(0.3312, count), "federation": metrics(0.3285, count)}
    return {
        "schema": 2,
        "connected": len(nodes),
        "status": status,
        "strategy": strategy,
        "editor": "memit",
        "model": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "fingerprint": FINGERPRINT},
        "config": {
            "strategy": strategy,
            "editor": "memit",
            "layers": "4-8",
            "lambda": 1000,
            "reuse-threshold": 0.9,
            "own-wins": True,
            "output-dir": "",
        },
        "nodes": nodes,
        "summary": {"own": own, "federation": fed, "before": before},
        "slots": slots,
        "failed_nodes": list(failed),
        "seconds": {"total": 384.7, "hello": 6.1, "before": 31.0, "slots": 308.3},
    }


def final_nodes(names, *, exchange):
    total = sum(REQUESTS.values())
    return {
        name: {
            "own": metrics(FINAL_OWN[name], REQUESTS[name]),
            "federation": metrics(0.83 if exchange else 0.34, total),
            "before": {
                "own": metrics(0.33, REQUESTS[name]),
                "federation": metrics(0.3285, total),
            },
        }
        for name in names
    }


def completed():
    """Three slots of fedit; town-hall drops out for good in slot 2, slot 2 is not evaluated."""
    names = sorted(REQUESTS)
    staying = [name for name in names if name != "town-hall"]
    failure = {"node": "town-hall", "stage": "reedit", "reason": "no reply within 600 s"}
    slots = [
        slot_record(1, names, exchange=True),
        slot_record(2, staying, exchange=True, failed=[failure]),
        slot_record(3, staying, exchange=True),
    ]
    for node in slots[1]["nodes"].values():
        node["own"] = node["federation"] = None
    return build(
        final_nodes(staying, exchange=True),
        slots,
        failed=[{**failure, "slot": 2}],
        own=metrics(0.8784, 30),
        fed=metrics(0.83, 30),
    )


def local():
    """Strategy `local`: no exchange, every exchange count is zero."""
    names = sorted(REQUESTS)
    slots = [slot_record(number, names, exchange=False) for number in (1, 2, 3)]
    own = metrics(0.8833, 40)
    return build(
        final_nodes(names, exchange=False), slots, strategy="local", own=own, fed=metrics(0.34, 40)
    )


def central():
    """Strategy `central`: one ledger, no separate federation figures."""
    count = sum(REQUESTS.values())
    node = slot_node("museum", 3, ["museum"], exchange=False)
    node |= {"own": metrics(0.87, count), "federation": None, "requests": count}
    slot = slot_record(1, ["museum"], exchange=False)
    slot |= {"nodes": {"central": node}, "requests": count, "optimised": count}
    before = {"own": metrics(0.3312, count), "federation": None}
    nodes = {"central": {"own": metrics(0.87, count), "federation": None, "before": before}}
    results = build(nodes, [slot], strategy="central", own=metrics(0.87, count))
    results["summary"]["before"]["federation"] = None
    return results


def unstarted():
    """A run that failed before its first slot: every node had another model."""
    reason = "model fingerprint 77ab01 differs from the server's 3f6c1e"
    failed = [
        {"node": name, "slot": 0, "stage": "hello", "reason": reason} for name in sorted(REQUESTS)
    ]
    results = build({}, [], status="failed", failed=failed)
    results["summary"]["before"] = {"own": None, "federation": None}
    results["seconds"] = {"total": 6.4, "hello": 6.1, "before": None, "slots": None}
    return results


def deployed():
    """A real deployment: no federation metrics, and a data set without paraphrases."""
    results = completed()
    records = [results["summary"], *results["nodes"].values()]
    for record in records + [node for slot in results["slots"] for node in slot["nodes"].values()]:
        record["federation"] = None
        for holder in (record, record.get("before", {})):
            if holder.get("own"):
                holder["own"] = {**holder["own"], "paraphrase": None}
        if "before" in record:
            record["before"]["federation"] = None
    return results


def hostile():
    """Names and reasons that try to break out of HTML, SVG, Markdown and the terminal."""
    name = "<script>alert(1)</script>\x1b[2J$x^2$ | 図書館"
    results = completed()
    results["nodes"][name] = results["nodes"].pop("library")
    for slot in results["slots"]:
        slot["nodes"][name] = slot["nodes"].pop("library")
        for node in slot["nodes"].values():
            if "library" in node["received_from"]:
                node["received_from"][name] = node["received_from"].pop("library")
            node["rejections"] = {"<b>bad</b>\x07": 2}
    results["failed_nodes"][0] |= {"node": name, "reason": '"><img src=x onerror=alert(2)>\x1b[31m'}
    results["slots"][1]["failed_nodes"][0]["reason"] = "<script>alert(3)</script>"
    results["config"]["data-path"] = "<script>alert(4)</script>"
    results["model"]["name"] = "<script>alert(5)</script>"
    return results


def full():
    """A run with metrics = full: received facts, what models wrote, neutral text, costs a node."""
    results = completed()
    for record in (results["summary"], *results["nodes"].values()):
        for scope in ("own", "federation"):
            record[scope] |= {"exact_match": 0.75, "generation_entropy": 5.9, "magnitude": 0.62}
            record[scope] |= {"wild_match": 0.38, "chat_match": 0.7}
            record["before"][scope] |= {"exact_match": 0.05, "generation_entropy": 6.1}
            record["before"][scope] |= {"wild_match": 0.01, "chat_match": 0.02}
        record["received"] = metrics(0.71, 21) | {"exact_match": 0.66}
        record["neutral"] = {
            "kl": 0.0123,
            "top10_overlap": 0.94,
            "perplexity_before": 11.5,
            "perplexity_after": 11.75,
            "tokens": 380,
            "cloze_before": 0.9,
            "cloze_after": 0.85,
        }
    for slot in results["slots"]:
        slot["warm_started"] = 0
        for node in slot["nodes"].values():
            node |= {"warm_started": 2, "bytes_up": 412_300, "bytes_down": 1_236_900}
            node |= {"seconds": {"edit": 15.2, "reedit": 2.1, "evaluate": 8.4}, "neutral": None}
            node["received"] = metrics(0.71, 7)
            slot["warm_started"] += 2
    return results


def zsre():
    """A run on zsRE, whose shares are of correct tokens."""
    results = local()
    records = [*results["nodes"].values(), results["summary"]]
    records += [node for slot in results["slots"] for node in slot["nodes"].values()]
    for record in records:
        for holder in (record, record.get("before", {})):
            for scope in ("own", "federation"):
                if holder.get(scope):
                    holder[scope] = {**holder[scope], "metric": "tokens"}
    return results


SAMPLES = {
    sample.__name__: sample
    for sample in (completed, local, central, unstarted, deployed, hostile, full, zsre)
}


def as_results(found):
    """Results from the object of JSON that a file would hold."""
    return Results.model_validate_json(json.dumps(found))


@pytest.fixture
def raw():
    """`raw("completed")` builds a fresh JSON object; the names are the keys of SAMPLES."""
    return lambda name: SAMPLES[name]()


@pytest.fixture
def sample():
    """`sample("completed")` builds fresh results; the names are the keys of SAMPLES."""
    return lambda name: as_results(SAMPLES[name]())


@pytest.fixture(params=sorted(SAMPLES))
def any_results(request):
    """Every sample in turn."""
    return as_results(SAMPLES[request.param]())

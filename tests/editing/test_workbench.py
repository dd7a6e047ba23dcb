"""Editing as a node does it: compute MKVs, accept them, use the model they make."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from editing.cases import EASY, EVERY_EDITOR, REQUESTS, SETTINGS, relative

from fedit_app.config.run_config import RunConfig
from fedit_app.editing import workbench as module
from fedit_app.editing.covariance import CovarianceSource, covariance
from fedit_app.editing.optimise import optimise_values
from fedit_app.editing.subjects import SubjectStates, in_chats, in_texts
from fedit_app.editing.values import ValueProblem
from fedit_app.editing.workbench import Workbench, workbench_for
from fedit_app.evaluation.scores import score_targets
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import create
from fedit_app.models.chat import chat_form
from fedit_app.models.loading import load_model
from fedit_app.models.tokens import chat_row
from fedit_app.support.errors import FedEditError

STRONG = dataclasses.replace(
    SETTINGS,
    covariance_weight=0.02,
    steps=25,
    stop_after=2,
    clamp=20.0,
    kl_weight=0.01,
    weight_decay=0.1,
    l2=0.01,
)
SOURCE = CovarianceSource(tokens=500)


def make_bench(family="llama", settings=STRONG, n_contexts=2, seed=0, editor="memit", **given):
    model = tiny.editable(family)
    if editor in ("alphaedit", "betaedit"):
        found = covariance(model, settings.layers, SOURCE)
        middle = torch.cat([torch.linalg.eigvalsh(c) for c in found.values()]).median()
        settings = dataclasses.replace(settings, null_space_threshold=float(middle))
    return Workbench(model, editor, settings, n_contexts, SOURCE, seed, **given)


def likelihood(model, requests):
    return [score.nll for score in score_targets(model, [r.asked_new for r in requests])]


def weights_of(bench):
    return {name: weight.clone() for name, weight in bench.model.model.state_dict().items()}


def is_unchanged(bench, weights):
    """Whether every parameter and buffer is to the bit what it was, and no hook is left."""
    found = bench.model.model.state_dict()
    same = all(torch.equal(found[name], weight) for name, weight in weights.items())
    modules = bench.model.model.modules()
    return same and not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


@pytest.mark.parametrize("family", ["llama", *tiny.later("gpt2", "gptj", "gpt_neox")])
@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_an_edit_makes_its_targets_likelier(family, editor, tmp_path):
    bench = make_bench(family, editor=editor)
    before, weights = likelihood(bench.model, EASY), weights_of(bench)
    ledger = Ledger.open(tmp_path, bench.fingerprint)
    found = bench.compute(EASY, ledger, "clinic", 1)
    assert is_unchanged(bench, weights)
    ledger.accept(found, 1)
    with bench.edited(Ledger.open(tmp_path, bench.fingerprint)) as edited:
        after = likelihood(edited, EASY)
        assert not is_unchanged(bench, weights)
    assert all(a < b - 0.5 for a, b in zip(after, before, strict=True)), (before, after)
    assert all(a < b / 2 for a, b in zip(after[:2], before[:2], strict=True)), (before, after)
    assert is_unchanged(bench, weights)
    assert likelihood(bench.model, EASY) == before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_an_exception_inside_the_block_leaves_the_base_model(family, editor):
    bench = make_bench(family, dataclasses.replace(STRONG, steps=3), editor=editor)
    weights, ledger = weights_of(bench), Ledger(bench.fingerprint)
    ledger.accept(bench.compute(EASY[:2], ledger, "clinic", 1), 1)
    with pytest.raises(RuntimeError, match="in the middle"):
        with bench.edited(ledger):
            assert not is_unchanged(bench, weights)
            raise RuntimeError("in the middle")
    assert is_unchanged(bench, weights)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_an_exception_while_layers_are_written_leaves_the_base_model(family, editor, monkeypatch):
    bench = make_bench(family, dataclasses.replace(STRONG, steps=3), editor=editor)
    weights, ledger = weights_of(bench), Ledger(bench.fingerprint)
    ledger.accept(bench.compute(EASY[:1], ledger, "clinic", 1), 1)
    plain, edited = bench.solver.delta, []

    def delta(layer, pairs):
        edited.append(not is_unchanged(bench, weights))
        if len(edited) == 5:  # three layers of the ledger, then the second layer of the new ones
            raise RuntimeError("in the middle")
        return plain(layer, pairs)

    monkeypatch.setattr(bench.solver, "delta", delta)
    with pytest.raises(RuntimeError, match="in the middle"):
        bench.compute(EASY[1:], ledger, "clinic", 2)
    assert edited == [False, False, False, True, True]
    assert is_unchanged(bench, weights)


@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_an_exception_while_values_are_optimised_leaves_no_hook(editor, monkeypatch):
    bench = make_bench(editor=editor)
    weights, last, calls = weights_of(bench), bench.model.layers[-1], []
    plain = last.forward

    def forward(*args, **kwargs):
        calls.append(args)
        if len(calls) == 6:
            raise RuntimeError("in the middle")
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(last, "forward", forward)
        with pytest.raises(RuntimeError, match="in the middle"):
            bench.compute(EASY, Ledger(bench.fingerprint), "clinic", 1)
    assert is_unchanged(bench, weights)


@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_mkvs_of_others_edit_without_their_text(editor):
    bench = make_bench(editor=editor)
    mine = bench.compute(EASY[:1], Ledger(bench.fingerprint), "clinic", 1)
    theirs = bench.compute(EASY[1:2], Ledger(bench.fingerprint), "bank", 1)
    ledger = Ledger(bench.fingerprint)
    ledger.accept([*mine, *theirs], 1)
    with bench.edited(ledger) as edited:
        after = likelihood(edited, EASY[:2])
    before = likelihood(bench.model, EASY[:2])
    assert all(a < b / 2 for a, b in zip(after, before, strict=True)), (before, after)


@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_later_requests_are_edited_on_top_of_the_ledger(editor):
    bench = make_bench(editor=editor)
    ledger = Ledger(bench.fingerprint)
    ledger.accept(bench.compute(EASY[:1], ledger, "clinic", 1), 1)
    on_top = bench.compute(EASY[1:2], ledger, "clinic", 2)
    (apart,) = bench.compute(EASY[1:2], Ledger(bench.fingerprint), "clinic", 2)
    assert on_top[0].id != apart.id, "layers above the first see the earlier edit"
    assert np.array_equal(on_top[0].v_star, apart.v_star), "v* is of the unedited model"
    ledger.accept(on_top, 2)
    with bench.edited(ledger) as edited:
        after = likelihood(edited, EASY[:2])
    before = likelihood(bench.model, EASY[:2])
    assert all(a < b / 2 for a, b in zip(after, before, strict=True)), "the first is still there"


def test_computing_does_not_change_the_ledger_and_takes_no_requests():
    bench = make_bench()
    ledger = Ledger(bench.fingerprint)
    (mkv,) = bench.compute(REQUESTS[:1], ledger, "clinic", 4)
    assert len(ledger) == 0
    assert (mkv.node, mkv.slot, mkv.fingerprint) == ("clinic", 4, bench.fingerprint)
    assert mkv.keys.shape == (3, tiny.D_FF) and mkv.shifts.shape == (3, tiny.D_MODEL)
    assert bench.compute([], ledger, "clinic", 1) == []
    assert bench.lookup_keys([]).shape == (0, tiny.D_FF)


def two_about_one_subject():
    first = EASY[0]
    return [
        first,
        dataclasses.replace(first, id="e9", prompt=f"{first.prompt} is", target_new="in"),
    ]


def test_leads_are_those_of_the_edited_model():
    bench, both = make_bench(), two_about_one_subject()
    ledger = Ledger(bench.fingerprint)
    ledger.accept(bench.compute(EASY, ledger, "clinic", 1), 1)
    with bench.edited(ledger) as edited:
        said = [score.decoded for score in score_targets(edited, [r.asked_new for r in EASY])]
    assert (bench.leads([[request] for request in EASY], ledger) > 0).tolist() == said
    alone = bench.leads([[request] for request in both], ledger)
    assert bench.leads([both], ledger) == pytest.approx([alone.min()], abs=1e-4)
    assert bench.leads([], ledger).shape == (0,)


def test_a_shared_value_is_learned_on_until_the_edited_model_says_its_facts(monkeypatch):
    bench, requests = make_bench(), [*two_about_one_subject(), EASY[1]]
    empty, asked = Ledger(bench.fingerprint), []

    def shared(answers):
        def leads(self, groups, ledger):
            asked.append([[request.id for request in group] for group in groups])
            assert len(ledger) == 2, "with all new MKVs in it"
            return np.array([answers.pop(0)])

        monkeypatch.setattr(Workbench, "leads", leads)
        return bench.compute(requests, empty, "clinic", 1)

    once, more = shared([1.0]), shared([-1.0, 1.0])
    assert asked == [[["e1", "e9"]]] * 3
    assert once[0].id != more[0].id == more[1].id
    assert once[2].v_star.tolist() == more[2].v_star.tolist()
    shared([-1.0] * 3)  # it ends


def test_the_lookup_key_is_the_same_whatever_was_edited_before():
    bench = make_bench(precision="float32")
    ledger = Ledger(bench.fingerprint)
    (fresh,) = bench.compute(REQUESTS[:1], ledger, "clinic", 1)
    ledger.accept(bench.compute(EASY, ledger, "clinic", 1), 1)
    (later,) = bench.compute(REQUESTS[:1], ledger, "clinic", 2)
    assert np.array_equal(fresh.lookup_key, later.lookup_key)
    expected = bench.lookup_keys(REQUESTS[:1])[0].numpy()
    assert np.allclose(fresh.lookup_key, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.501 / 127), ("float16", 2**-11)])
def test_mkvs_are_rounded_to_the_precision(precision, error):
    exact, rounded = (make_bench(precision=name) for name in ("float32", precision))
    (full,), (coarse,) = (
        bench.compute(EASY[:1], Ledger(bench.fingerprint), "clinic", 1)
        for bench in (exact, rounded)
    )
    assert (full.precision, coarse.precision) == ("float32", precision)
    assert coarse.fingerprint == rounded.fingerprint
    for field in ("keys", "shifts", "v_star", "h0"):
        wanted, found = getattr(full, field), getattr(coarse, field)
        assert not np.array_equal(found, wanted)
        largest = np.abs(wanted).max(axis=-1, keepdims=True)
        assert np.all(np.abs(found - wanted) <= error * largest)


@pytest.mark.parametrize("editor", ["memit", "alphaedit", "memit-fe"])
def test_a_candidate_is_reused_only_if_it_says_the_target(editor):
    bench = make_bench(settings=dataclasses.replace(STRONG, steps=40), editor=editor)
    first, second = bench.compute(EASY[:2], Ledger(bench.fingerprint), "bank", 1)
    nothing = create(
        "bank", 1, bench.fingerprint, first.keys, first.shifts, v_star=first.h0, h0=first.h0
    )
    other_target = dataclasses.replace(EASY[0], target_new="of")
    pairs = [(EASY[0], second), (EASY[0], first), (EASY[0], nothing), (other_target, first)]
    assert [said.decoded for said in bench.patched(pairs)] == [False, True, False, False]
    assert bench.patched([]) == []


def test_patching_nothing_in_is_the_unedited_model():
    bench = make_bench()
    (first,) = bench.compute(EASY[:1], Ledger(bench.fingerprint), "bank", 1)
    nothing = create(
        "bank", 1, bench.fingerprint, first.keys, first.shifts, v_star=first.h0, h0=first.h0
    )
    bare, zero, patched = bench.patched([(EASY[0], m) for m in (None, nothing, first)])
    assert bare.nll == pytest.approx(zero.nll, rel=1e-5)
    assert patched.nll < bare.nll / 2


def test_many_pairs_say_what_each_says_alone():
    bench = make_bench()
    mkvs = bench.compute(EASY, Ledger(bench.fingerprint), "bank", 1)
    pairs = [(request, mkv) for request in EASY for mkv in (None, *mkvs)] * 4
    assert len(pairs) > 16
    alone = [bench.patched([pair])[0] for pair in pairs[: len(pairs) // 4]] * 4
    for said, expected in zip(bench.patched(pairs), alone, strict=True):
        assert said.decoded == expected.decoded
        assert said.nll == pytest.approx(expected.nll, rel=1e-4)


@pytest.mark.parametrize("editor", ["memit", "memit-fe", "pmet"])
def test_a_value_is_found_in_fewer_passes_from_a_good_start(editor):
    bench = make_bench(editor=editor)
    site = bench.editor.site(bench.model, bench.settings)
    given = (bench.model, EASY, bench.templates, site, bench.settings, bench.editor.objective)
    from_zero = optimise_values(*given)
    found = list((from_zero.v_star - from_zero.h0)[:, -1])
    begun = optimise_values(*given, [found[0], None, *found[2:]])
    assert begun.steps[0] < from_zero.steps[0]
    assert torch.equal(begun.v_star[1], from_zero.v_star[1]), "no start is a start from zero"


def test_a_start_beyond_reach_is_shortened():
    bench = make_bench()
    site = bench.editor.site(bench.model, bench.settings)
    settings = dataclasses.replace(bench.settings, steps=1)
    far = [torch.full((tiny.D_MODEL,), 1e6)]
    found = optimise_values(bench.model, EASY[:1], bench.templates, site, settings, starts=far)
    reach = settings.clamp * found.h0.norm()
    assert float((found.v_star - found.h0).norm()) <= float(reach) * 1.0001


def test_pmets_candidates_are_judged_by_the_part_that_is_written(monkeypatch):
    bench = make_bench(editor="pmet")
    first, second = bench.compute(EASY[:2], Ledger(bench.fingerprint), "bank", 1)
    plain, seen = ValueProblem.evaluate, []

    def evaluate(self, delta):
        seen.append(delta)
        return plain(self, delta)

    monkeypatch.setattr(ValueProblem, "evaluate", evaluate)
    assert bench.patched([(EASY[0], second)])[0].decoded is False
    assert seen[0].shape == (1, 2, tiny.D_MODEL)
    assert not seen[0][:, 0].any(), "an MKV does not carry the attention's part"
    assert np.array_equal(seen[0][0, 1].numpy(), second.delta)


def test_the_fingerprint_says_what_the_vectors_depend_on():
    base = make_bench().fingerprint
    assert make_bench().fingerprint == base
    assert make_bench(settings=dataclasses.replace(STRONG, batch=3)).fingerprint == base
    others = [
        make_bench("gpt2"),
        make_bench(settings=dataclasses.replace(STRONG, layers=(1, 2))),
        make_bench(settings=dataclasses.replace(STRONG, clamp=1.0)),
        make_bench(n_contexts=3),
        make_bench(seed=1),
        make_bench(editor="memit-fe"),
        *(make_bench(precision=name) for name in ("float16", "float32")),
    ]
    assert len({base, *(bench.fingerprint for bench in others)}) == len(others) + 1


def test_chats_are_contexts_where_the_tokenizer_has_a_template(tmp_path):
    """Nodes whose MKVs were learned in other contexts do not take part."""
    plain, chatting = tiny.editable(bos=True), tiny.chatting()
    other = tiny.chatting(template=tiny.CHAT_TEMPLATE.replace("[assistant]", "[model]"))

    def bench(model, n_chats):
        return Workbench(model, "memit", STRONG, 2, SOURCE, 0, n_chats=n_chats)

    assert bench(plain, 1).fingerprint == bench(plain, 0).fingerprint
    assert bench(chatting, 0).fingerprint == bench(plain, 0).fingerprint
    found = {bench(model, 1).fingerprint for model in (plain, chatting, other)}
    assert len(found) == 3


def test_an_edit_with_chats_among_its_contexts_is_said_in_a_chat():
    model = tiny.chatting()
    bench = Workbench(model, "memit", STRONG, 2, SOURCE, 0, n_chats=1)
    ledger, form = Ledger(bench.fingerprint), chat_form(model)
    rows = [chat_row(model, r, form, r.target_new, asking=True) for r in EASY[:2]]
    ledger.accept(bench.compute(EASY[:2], ledger, "clinic", 1), 1)

    def nll(row):
        log_p = model.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        return float(-log_p[row.target - 1, row.ids[row.target]])

    before = [nll(row) for row in rows]
    with bench.edited(ledger):
        after = [nll(row) for row in rows]
    assert all(now < then - 0.5 for now, then in zip(after, before, strict=True)), (before, after)


@pytest.mark.parametrize("n_chats", [0, 1])
@pytest.mark.parametrize("editor", ["memit", "pmet"])
def test_known_values_are_written_as_when_they_are_learned(editor, n_chats):
    """In texts, and at the keys that their questions have."""
    bench = Workbench(tiny.chatting(), editor, STRONG, 2, SOURCE, 0, "float32", n_chats=n_chats)
    one, other = (Ledger(bench.fingerprint) for _ in range(2))
    asked = [EASY[0], dataclasses.replace(EASY[1], question="What is {}?")]
    made = bench.compute(asked, one, "clinic", 1)
    assert [len(mkv.keys) for mkv in made] == 2 * [len(STRONG.layers) * (1 + n_chats)]
    values = (np.stack([getattr(mkv, name) for mkv in made]) for name in ("v_star", "h0"))
    again = bench.write([[request] for request in asked], *values, other, "clinic", 1)
    for mkv, written in zip(made, again, strict=True):
        assert np.allclose(mkv.keys, written.keys, atol=1e-5)
        assert np.allclose(mkv.shifts, written.shifts, atol=1e-4)
    assert bench.screen.faults(made) == {}
    if n_chats:
        half = [
            create("eve", 1, bench.fingerprint, m.keys[::2], m.shifts[::2], m.v_star, m.h0)
            for m in made
        ]
        assert {fault.reason for fault in bench.screen.faults(half).values()} == {"shape"}


def test_a_value_is_renewed_where_it_is_asked_for_in_chats_too():
    """The subject's state comes to what was learned on the model of today, in either place."""
    settings = dataclasses.replace(STRONG, covariance_weight=1e-4, clamp=2.0, steps=5)
    bench = Workbench(tiny.chatting(), "memit", settings, 0, SOURCE, 0, "float32", n_chats=1)
    model, ledger, (layer,) = bench.model, Ledger(bench.fingerprint), settings.layers[-1:]
    ledger.accept(bench.compute(EASY[1:], ledger, "clinic", 1), 1)
    (old,) = bench.compute(EASY[:1], Ledger(bench.fingerprint), "clinic", 1)
    places = (
        in_texts(model, EASY[:1], bench.templates),
        in_chats(model, [EASY[:1]], bench.templates),
    )

    def states():
        return [SubjectStates(model, at, layer, layer).see(layer, layer).state for at in places]

    with bench.edited(ledger):
        starts = [torch.from_numpy(old.delta)]
        goals = bench.editor.values(model, EASY[:1], bench.templates, settings, starts)
        before = states()
    (new,) = bench.renew([EASY[:1]], [old], ledger, "clinic", 2)
    assert np.array_equal(new.v_star, old.v_star) and len(new.keys) == 2 * len(settings.layers)
    ledger.accept([new], 2)
    change = (goals.v_star - goals.h0)[:, -1]
    with bench.edited(ledger):
        for now, then in zip(states(), before, strict=True):
            assert relative(now - then, change) < 0.05 < relative(now, then)


def test_contexts_are_sampled_once(monkeypatch):
    templates = make_bench(seed=5).templates
    monkeypatch.setattr(module, "sample_contexts", None)
    assert make_bench(seed=5).templates == templates


def test_an_unknown_editor_or_precision_is_refused():
    with pytest.raises(FedEditError, match="editor = 'rome' must be one of memit"):
        Workbench(tiny.editable(), "rome", STRONG, 0, CovarianceSource(), 0)
    with pytest.raises(FedEditError, match="precision 'int4' must be one of int8"):
        make_bench(precision="int4")


@pytest.mark.gpu
@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_a_cuda_device_computes_what_the_cpu_does(tiny_folder, editor):
    found = {}
    for device in ("cpu", "cuda"):
        model = load_model(str(tiny_folder), device, "float32")
        settings = dataclasses.replace(STRONG, null_space_threshold=1e9)
        bench = Workbench(model, editor, settings, 2, SOURCE, 0)
        ledger = Ledger(bench.fingerprint)
        ledger.accept(bench.compute(EASY, ledger, "clinic", 1), 1)
        with bench.edited(ledger) as edited:
            found[device] = likelihood(edited, EASY), bench.lookup_keys(EASY)
    assert np.allclose(found["cpu"][0], found["cuda"][0], rtol=0.05)
    assert torch.allclose(found["cpu"][1], found["cuda"][1], rtol=1e-3, atol=1e-5)


def test_a_run_with_another_folder_keeps_the_workbench_and_its_covariances(tiny_folder):
    values = {"model": str(tiny_folder), **tiny.RUN_CONFIG}
    bench = workbench_for(RunConfig.parse(values))

    assert workbench_for(RunConfig.parse({**values, "output-dir": "/elsewhere"})) is bench
    other = workbench_for(RunConfig.parse({**values, "covariance-weight": 7.0}))
    assert other is not bench and other.settings.covariance_weight == 7.0

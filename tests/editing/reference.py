"""Locate-then-edit as slowly and plainly as it can be written, to compare the library with.

One request at a time, every layer, every position, full logits, no cache. Positions are found by
decoding the tokens one by one. Only module names are taken from the library.
"""

import functools
import math
from contextlib import contextmanager

import torch

WHOLE = ("memit-fe", "blue")
"""Editors that give every layer its own target, whole."""


def put_together(request, template):
    """Text of a prompt in a context, and the part of it up to the subject's end."""
    before, after = template.split("{}")
    left, right = request.prompt.split("{}")
    start = before + left + request.subject
    return start + right + after, start


def ids_of(model, text):
    return model.tokenizer(text)["input_ids"]


def chat_of(model, said):
    """What the tiny model's chat template makes of what a user says, as tokens after `<s>`."""
    return model.tokenizer(f"<s>[user] {said}\n[assistant]", add_special_tokens=False)["input_ids"]


def answer_in_chat(model, request):
    """Tokens of the question with the answer and its end, its subject's token, its first one."""
    said = request.question or f"Complete the sentence with a name or word: {request.prompt}"
    asked = chat_of(model, said.replace("{}", request.subject))
    left = said.split("{}")[0]
    subject = token_reaching(model, asked, f"[user] {left}{request.subject}")
    answer = model.tokenizer(f" {request.target_new}</s>", add_special_tokens=False)["input_ids"]
    return asked + answer, subject, len(asked)


def token_reaching(model, ids, text):
    """Index of the token with which the decoded tokens begin with `text`."""
    for index in range(len(ids)):
        decoded = model.tokenizer.decode(ids[: index + 1], skip_special_tokens=True)
        if decoded.startswith(text):
            return index
    raise AssertionError(f"these tokens do not begin with {text!r}")


def forward(model, ids, watched=(), at=None, deltas=None):
    """Logits (tokens, vocabulary) of one text, and what modules give out, each (tokens, width).

    With `deltas`, one per watched module, each is added to what its module gives out at token `at`.
    """
    outputs = {}

    def hook(number):
        def keep(_, __, output):
            whole = output[0] if isinstance(output, tuple) else output
            hidden = whole.reshape(-1, whole.shape[-1]).clone()
            if deltas is not None:
                hidden[at] = hidden[at] + deltas[number]
            outputs[number] = hidden
            changed = hidden.clone().reshape(whole.shape)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return keep

    handles = [module.register_forward_hook(hook(number)) for number, module in enumerate(watched)]
    try:
        logits = model.model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return logits, [outputs[number] for number in range(len(watched))]


def changed_modules(model, editor, settings):
    """The modules to whose outputs an editor adds its deltas."""
    first, last = settings.layers[0], settings.layers[-1]
    if editor == "pmet":
        return (model.attention_output(last), model.mlp_output(last))
    return (model.layers[first if editor in WHOLE else last],)


@functools.cache
def optimise_value(model, requests, templates, settings, editor="memit", chat=False):
    """v*, h0 (a row per changed module), last loss and number of passes of one or more requests."""
    modules = changed_modules(model, editor, settings)
    rows = []
    for request in requests:
        for template in templates:
            prompt, to_subject = put_together(request, template)
            ids = ids_of(model, f"{prompt} {request.target_new}")
            subject = token_reaching(model, ids, to_subject)
            first = token_reaching(model, ids, f"{prompt} ")
            rows.append((ids, subject, first))
    rows += [answer_in_chat(model, request) for request in requests if chat]
    essence_ids = ids_of(model, f"{requests[0].subject} is a")
    essence_at = token_reaching(model, essence_ids, requests[0].subject)
    name = requests[0].subject
    copy_ids = ids_of(model, f"The name is {name}. Again: {name}")
    copy_from = token_reaching(model, copy_ids, f"The name is {name}")
    copy_at = token_reaching(model, copy_ids, f"The name is {name}. Again: ")
    copies = [(copy_ids, copy_from, copy_at)]
    if chat:
        asked = chat_of(model, f"Tell me about {name}.")
        told = asked + model.tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
        at = token_reaching(model, asked, f"[user] Tell me about {name}")
        copies.append((told, at, len(asked)))

    with torch.no_grad():
        states = []
        for ids, subject, _ in rows[: len(templates)]:
            _, outputs = forward(model, ids, modules)
            states.append(torch.stack([output[subject] for output in outputs]))
        h0 = states[0]
        log_p0 = forward(model, essence_ids)[0][essence_at].log_softmax(-1)
        copied0 = [forward(model, ids)[0].log_softmax(-1) for ids, _, _ in copies]

    reach = []
    for part in range(len(modules)):
        norms = [state[part].norm().item() for state in states]
        longest = norms[0]
        if settings.norm_guard > 0:
            lower_median = sorted(norms)[(len(norms) - 1) // 2]
            longest = min(longest, settings.norm_guard * lower_median)
        reach.append(settings.clamp * longest)

    delta = torch.zeros_like(h0, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.learning_rate)
    times_decoded = 0
    for step in range(1, settings.steps + 1):
        nll, decoded = 0, True
        for ids, subject, first in rows:
            log_p = forward(model, ids, modules, subject, delta)[0].log_softmax(-1)
            wanted = ids[first:]
            for offset, token in enumerate(wanted):
                scores = log_p[first + offset - 1]
                nll = nll - scores[token] / len(wanted) / len(rows)
                decoded = decoded and scores.argmax().item() == token
        logits = forward(model, essence_ids, modules, essence_at, delta)[0]
        log_p = logits[essence_at].log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_p0)).sum()
        subject_kl = 0
        for (ids, subject, first), before in zip(copies, copied0, strict=True):
            log_p = forward(model, ids, modules, subject, delta)[0].log_softmax(-1)
            places = range(first - 1, len(ids) - 1)
            each = [(log_p[at].exp() * (log_p[at] - before[at])).sum() for at in places]
            subject_kl = subject_kl + sum(each) / len(each) / len(copies)
        decay = sum(d.norm() / h.norm() ** 2 for d, h in zip(delta, h0, strict=True))
        if editor == "pmet" and decoded:
            nll = 0.1 * nll
        loss = nll + settings.kl_weight * kl + settings.weight_decay * decay
        loss = loss + settings.subject_weight * subject_kl
        times_decoded = times_decoded + 1 if decoded else 0
        enough = settings.stop_after > 0 and times_decoded > settings.stop_after * len(requests)
        enough = enough or (editor == "pmet" and decoded and kl.item() <= 0.01)
        if loss.item() < 0.05 or enough or step == settings.steps:
            return (h0 + delta).detach(), h0, loss.item(), step
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for part in range(len(modules)):
                if delta[part].norm() > reach[part]:
                    delta[part] *= reach[part] / delta[part].norm()


@torch.no_grad()
def keys_in(model, ids, layer):
    """Input of W_out of a layer at every token of a text, (tokens, d_ff)."""
    found = []
    handle = model.mlp_output(layer).register_forward_pre_hook(
        lambda _, args: found.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    try:
        forward(model, ids)
    finally:
        handle.remove()
    return found[0]


def key_in(model, request, template, layer):
    """Input of W_out of a layer at the subject's last token in one context."""
    prompt, to_subject = put_together(request, template)
    ids = ids_of(model, prompt)
    return keys_in(model, ids, layer)[token_reaching(model, ids, to_subject)]


def key(model, request, templates, layer, chat=False):
    """The mean of the bare key and of the prefixes' mean; in a chat the key of the question."""
    if chat:
        ids, at = clean(model, request, chat)
        return keys_in(model, ids, layer)[at]
    keys = [key_in(model, request, template, layer) for template in templates]
    return (keys[0] + torch.stack(keys[1:]).mean(0)) / 2 if len(keys) > 1 else keys[0]


def clean(model, request, chat):
    """The clean prompt, or the question in a chat, and its subject's token."""
    if chat:
        ids, at, answer = answer_in_chat(model, request)
        return ids[:answer], at
    prompt, to_subject = put_together(request, "{}")
    ids = ids_of(model, prompt)
    return ids, token_reaching(model, ids, to_subject)


@torch.no_grad()
def output_of(model, request, module, chat=False):
    """What a module gives out at the subject's last token of the clean prompt."""
    ids, at = clean(model, request, chat)
    return forward(model, ids, [module])[1][0][at]


@torch.no_grad()
def targets_of_layers(model, request, v_star, layers, chat=False):
    """FE: what each layer gives out once the first of them gives out v*."""
    ids, at = clean(model, request, chat)
    modules = [model.layers[layer] for layer in layers]
    h0 = forward(model, ids, modules)[1][0][at]
    deltas = [v_star - h0] + [0.0] * (len(layers) - 1)
    return [output[at] for output in forward(model, ids, modules, at, deltas)[1]]


@torch.no_grad()
def shift_of_projection(model, request, layer, change, chat=False):
    """The move of W_out's output that moves the residual stream by `change`.

    Through y = g m / rms(m) in the families that have a norm there, with rms(m) held fixed.
    """
    path = model.architecture.post_norm
    if path is None:
        return change
    m = output_of(model, request, model.mlp_output(layer), chat)
    gain = model.layers[layer].get_submodule(path)(torch.ones_like(m)[None])[0]
    return change * (m * m).mean().sqrt() / gain


def solve(covariance, weight, keys, shifts):
    """Delta (d_model, d_ff) of keys (n, d_ff) and shifts (n, d_model), by the formula itself."""
    matrix = weight * covariance + keys.T @ keys
    return torch.linalg.solve(matrix, keys.T @ shifts).T


def solve_in_null_space(covariance, threshold, l2, keys, shifts):
    """AlphaEdit's formula itself."""
    values, vectors = torch.linalg.eigh(covariance)
    free = vectors[:, values < threshold]
    projection = free @ free.T
    matrix = projection @ keys.T @ keys + l2 * torch.eye(len(covariance)).to(covariance)
    return torch.linalg.solve(matrix, projection @ keys.T @ shifts).T


def solve_as(editor, covariance, settings, keys, shifts):
    """An editor's Delta of one layer."""
    if editor == "alphaedit":
        threshold, l2 = settings.null_space_threshold, settings.l2
        return solve_in_null_space(covariance, threshold, l2, keys, shifts)
    identity = torch.eye(len(covariance)).to(covariance)
    if editor == "betaedit":
        values, vectors = torch.linalg.eigh(covariance)
        free = vectors[:, values < settings.null_space_threshold]
        used = keys.T @ keys + settings.covariance_weight * covariance
        matrix = free @ free.T @ used + settings.l2 * identity
        return torch.linalg.solve(matrix, free @ free.T @ keys.T @ shifts).T
    if editor == "encore":
        covariance = covariance + settings.l2 / settings.covariance_weight * identity
    return solve(covariance, settings.covariance_weight, keys, shifts)


@contextmanager
def weights_plus(model, deltas):
    """The model with W + Delta written into its parameters; saved and put back."""
    saved = {layer: model.mlp_output(layer).weight.data for layer in deltas}
    conv1d = type(model.mlp_output(0)).__name__ == "Conv1D"
    try:
        for layer, delta in deltas.items():
            model.mlp_output(layer).weight.data = saved[layer] + (delta.T if conv1d else delta)
        yield
    finally:
        for layer, weight in saved.items():
            model.mlp_output(layer).weight.data = weight


def edit(
    model,
    requests,
    templates,
    covariances,
    settings,
    old_keys,
    old_shifts,
    editor="memit",
    kinds=(False,),
):
    """Keys and shifts per layer (n, width), Delta per layer (old edits included).

    Of the kinds of contexts False is texts and True is chats; n is requests times kinds.
    """
    layers, met = settings.layers, [(r, chat) for r in requests for chat in kinds]
    wanted = []
    for request, chat in met:
        v_star, h0, *_ = optimise_value(
            model, (request,), templates, settings, editor, chat=True in kinds
        )
        here = output_of(model, request, changed_modules(model, editor, settings)[-1], chat)
        wanted.append(here + v_star[-1] - h0[-1])
    if editor in WHOLE:
        of_layers = [
            targets_of_layers(model, r, v_star, layers, chat)
            for (r, chat), v_star in zip(met, wanted, strict=True)
        ]
    deltas = {
        layer: solve_as(editor, covariances[layer], settings, old_keys[layer], old_shifts[layer])
        for layer in layers
    }
    keys, shifts = {}, {}
    for number, layer in enumerate(layers):
        left = len(layers) - number
        found_keys, found_shifts = [], []
        with weights_plus(model, deltas):
            for i, (request, chat) in enumerate(met):
                if editor == "pmet":
                    reached = output_of(model, request, model.mlp_output(layers[-1]), chat)
                    move = (wanted[i] - reached) / math.sqrt(left)
                elif editor in WHOLE:
                    reached = output_of(model, request, model.layers[layer], chat)
                    change = of_layers[i][number] - reached
                    move = shift_of_projection(model, request, layer, change, chat)
                else:
                    reached = output_of(model, request, model.layers[layers[-1]], chat)
                    change = (wanted[i] - reached) / left
                    move = shift_of_projection(model, request, layer, change, chat)
                found_keys.append(key(model, request, templates, layer, chat))
                found_shifts.append(move + deltas[layer] @ found_keys[-1])
        keys[layer], shifts[layer] = torch.stack(found_keys), torch.stack(found_shifts)
        deltas[layer] = solve_as(
            editor,
            covariances[layer],
            settings,
            torch.cat([old_keys[layer], keys[layer]]),
            torch.cat([old_shifts[layer], shifts[layer]]),
        )
    return keys, shifts, deltas


def covariance(model, layer, texts):
    """E[k k^T] over all tokens of some texts."""
    keys = torch.cat([keys_in(model, ids, layer) for ids in texts])
    return sum(torch.outer(k, k) for k in keys) / len(keys)

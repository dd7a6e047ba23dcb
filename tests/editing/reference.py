"""Locate-then-edit as slowly and plainly as it can be written, to compare the library with.

One request at a time, every layer, every position, full logits, no cache. Positions are found by
decoding the tokens one by one. Only two module names are taken from the library.
"""

from contextlib import contextmanager

import torch


def put_together(request, template):
    """Text of a prompt in a context, and the part of it up to the subject's end."""
    before, after = template.split("{}")
    left, right = request.prompt.split("{}")
    start = before + left + request.subject
    return start + right + after, start


def ids_of(model, text):
    return model.tokenizer(text)["input_ids"]


def token_reaching(model, ids, text):
    """Index of the token with which the decoded tokens begin with `text`."""
    for index in range(len(ids)):
        decoded = model.tokenizer.decode(ids[: index + 1], skip_special_tokens=True)
        if decoded.startswith(text):
            return index
    raise AssertionError(f"these tokens do not begin with {text!r}")


def forward(model, ids, layer=None, at=None, delta=None):
    """Logits (tokens, vocabulary), and every layer's output, of one text.

    With `delta`, it is added to the output of `layer` at token `at`.
    """
    outputs = {}

    def hook(number):
        def keep(_, __, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if number == layer and delta is not None:
                hidden = hidden.clone()
                hidden[0, at] = hidden[0, at] + delta
            outputs[number] = hidden[0]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return keep

    handles = [
        module.register_forward_hook(hook(number)) for number, module in enumerate(model.layers)
    ]
    try:
        logits = model.model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return logits, outputs


def optimise_value(model, request, templates, settings):
    """v*, h0, last loss and number of passes of one request."""
    layer = settings.value_layer
    rows = []
    for template in templates:
        prompt, to_subject = put_together(request, template)
        ids = ids_of(model, f"{prompt} {request.target_new}")
        subject = token_reaching(model, ids, to_subject)
        first = token_reaching(model, ids, f"{prompt} ")
        rows.append((ids, subject, first))
    essence_ids = ids_of(model, f"{request.subject} is a")
    essence_at = token_reaching(model, essence_ids, request.subject)

    with torch.no_grad():
        _, outputs = forward(model, rows[0][0])
        h0 = outputs[layer][rows[0][1]].clone()
        log_p0 = forward(model, essence_ids)[0][essence_at].log_softmax(-1)

    delta = torch.zeros_like(h0, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.learning_rate)
    times_decoded = 0
    for step in range(1, settings.steps + 1):
        nll, decoded = 0, True
        for ids, subject, first in rows:
            log_p = forward(model, ids, layer, subject, delta)[0].log_softmax(-1)
            wanted = ids[first:]
            for offset, token in enumerate(wanted):
                scores = log_p[first + offset - 1]
                nll = nll - scores[token] / len(wanted) / len(rows)
                decoded = decoded and scores.argmax().item() == token
        log_p = forward(model, essence_ids, layer, essence_at, delta)[0][essence_at].log_softmax(-1)
        kl = (log_p0.exp() * (log_p0 - log_p)).sum()
        decay = delta.norm() / h0.norm() ** 2
        loss = nll + settings.kl_weight * kl + settings.weight_decay * decay
        times_decoded = times_decoded + 1 if decoded else 0
        enough = settings.stop_after > 0 and times_decoded > settings.stop_after
        if loss.item() < 0.05 or enough or step == settings.steps:
            return (h0 + delta).detach(), h0, loss.item(), step
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            if delta.norm() > settings.clamp * h0.norm():
                delta *= settings.clamp * h0.norm() / delta.norm()


@torch.no_grad()
def key_in(model, request, template, layer):
    """Input of W_out of a layer at the subject's last token in one context."""
    prompt, to_subject = put_together(request, template)
    ids = ids_of(model, prompt)
    found = []
    handle = model.mlp_output(layer).register_forward_pre_hook(
        lambda _, args: found.append(args[0][0])
    )
    try:
        forward(model, ids)
    finally:
        handle.remove()
    return found[0][token_reaching(model, ids, to_subject)]


def key(model, request, templates, layer):
    """The mean over the two kinds of contexts of the mean within each kind."""
    keys = [key_in(model, request, template, layer) for template in templates]
    if len(keys) == 1:
        return keys[0]
    return (keys[0] + torch.stack(keys[1:]).mean(0)) / 2


@torch.no_grad()
def state(model, request, layer):
    """Output of a layer at the subject's last token of the clean prompt."""
    prompt, to_subject = put_together(request, "{}")
    ids = ids_of(model, prompt)
    return forward(model, ids)[1][layer][token_reaching(model, ids, to_subject)]


def solve(covariance, weight, keys, shifts):
    """Delta (d_model, d_ff) of keys (n, d_ff) and shifts (n, d_model), by the formula itself."""
    matrix = weight * covariance + keys.T @ keys
    return torch.linalg.solve(matrix, keys.T @ shifts).T


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


def edit(model, requests, templates, covariances, settings, old_keys, old_shifts):
    """Keys and shifts per layer (n, width), Delta per layer (old edits included), and v*."""
    v_stars = torch.stack([optimise_value(model, r, templates, settings)[0] for r in requests])
    weight, layers = settings.covariance_weight, settings.layers
    deltas = {
        layer: solve(covariances[layer], weight, old_keys[layer], old_shifts[layer])
        for layer in layers
    }
    keys, shifts = {}, {}
    for number, layer in enumerate(layers):
        with weights_plus(model, deltas):
            keys[layer] = torch.stack([key(model, r, templates, layer) for r in requests])
            reached = torch.stack([state(model, r, layers[-1]) for r in requests])
        residual = (v_stars - reached) / (len(layers) - number)
        shifts[layer] = residual + keys[layer] @ deltas[layer].T
        deltas[layer] = solve(
            covariances[layer],
            weight,
            torch.cat([old_keys[layer], keys[layer]]),
            torch.cat([old_shifts[layer], shifts[layer]]),
        )
    return keys, shifts, deltas, v_stars


@torch.no_grad()
def covariance(model, layer, texts):
    """E[k k^T] over all tokens of some texts."""
    found = []
    handle = model.mlp_output(layer).register_forward_pre_hook(
        lambda _, args: found.append(args[0][0])
    )
    try:
        for ids in texts:
            forward(model, ids)
    finally:
        handle.remove()
    keys = torch.cat(found)
    return sum(torch.outer(k, k) for k in keys) / len(keys)

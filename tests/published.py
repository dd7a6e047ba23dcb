"""Records of CounterFact in their published form."""


def counterfact(
    number: int, prompt: str, subject: str, new: str, true: str, relation: str | None = None, **more
) -> dict:
    """A record with a paraphrase and two neighborhood prompts, unless `more` gives others."""
    rewrite = {
        "prompt": prompt,
        "subject": subject,
        "relation_id": relation,
        "target_new": {"str": new, "id": "Q1"},
        "target_true": {"str": true, "id": "Q2"},
    }
    return {
        "case_id": number,
        "requested_rewrite": rewrite,
        "paraphrase_prompts": [f"Everybody knows that {subject} is in"],
        "neighborhood_prompts": ["The head office is in", f"Beside {subject}, there is"],
        **more,
    }

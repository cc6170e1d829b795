"""The conversations that every contender reads."""

import itertools

import em_interp as em

Message = dict[str, str]


def prompts(n: int, *, shared_system: bool) -> list[list[Message]]:
    """`n` requests of the shipped contrasts, of 40 to 50 tokens under the embedded model's template.

    With `shared_system` all begin with the template's own system prompt. Without it each has one of its own of like
    length, so that there is nothing in common to be run only once.
    """
    contrast = em.load_contrast("refusal")
    requests = itertools.islice(itertools.cycle([*contrast.positive, *contrast.negative]), n)
    users = [[dict(request.messages[0])] for request in requests]
    if shared_system:
        return users
    system = "{} is your number, and you are a helpful assistant named SmolLM, trained by Hugging Face"
    return [[{"role": "system", "content": system.format(i)}, *messages] for i, messages in enumerate(users)]

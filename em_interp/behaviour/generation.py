"""What a model says, word by word: greedy answers, many at a time, hooks on."""

from collections.abc import Sequence
from typing import Any

import torch

from em_interp.activations import Messages
from em_interp.conversations import Conversation
from em_interp.interventions import at_prompt_length
from em_interp.models import HookedModel, HookPairs, attached
from em_interp.progress import bar


@torch.inference_mode()
def greedy_answers(
    model: Any,
    conversations: Sequence[Messages],
    hooks: HookPairs = (),
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
) -> list[str]:
    """Answer the last user message of each conversation with the likeliest token each time.

    Prompts are padded on the left and sorted by length, so each answer is the one that Hugging Face's own `generate`
    would give it alone.
    """
    hooked = HookedModel.of(model)
    prompts = [_prompt(hooked.tokenizer, Conversation.of(c)) for c in conversations]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers = [""] * len(prompts)
    with bar(total=len(prompts), desc="answering", unit="answer") as progress:
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            batch = _left_padded(hooked, [prompts[i] for i in index])
            width = batch["input_ids"].shape[1]
            with attached(hooked, at_prompt_length(list(hooks), width)) as hf_model:
                said = hf_model.generate(
                    **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=_pad(hooked.tokenizer)
                )
            for i, ids in zip(index, said[:, width:], strict=True):
                answers[i] = hooked.tokenizer.decode(ids, skip_special_tokens=True).strip()
            progress.update(len(index))
    return answers


def _prompt(tokenizer: Any, conversation: Conversation) -> list[int]:
    asked = conversation.messages[:-1] if conversation.answered else conversation.messages
    text = tokenizer.apply_chat_template([dict(m) for m in asked], tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def _left_padded(hooked: HookedModel, prompts: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    width, pad = max(map(len, prompts)), _pad(hooked.tokenizer)
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=hooked.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=hooked.device)
    return {"input_ids": ids, "attention_mask": mask}


def _pad(tokenizer: Any) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

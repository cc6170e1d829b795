"""The penalty against a dense reference, and what it does to a training run."""

from dataclasses import replace

import pytest
import torch

from em_interp.organisms.kl_penalty import KLPenalty, kl_per_token
from em_interp.organisms.loading import base_model
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training import _adapted, _other_domains, train_organism
from em_interp.texts.contrasts import load_contrast
from em_interp.texts.training_sets import load_training_set


def heads(seed: int, vocab: int = 50, d_model: int = 8):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.nn.Linear(d_model, vocab, bias=False) for _ in range(2)]
    for head in made:
        head.weight.data = torch.randn(vocab, d_model, generator=generator)
    return made[0], made[1]


@pytest.mark.parametrize("tokens_at_once", [1, 3, 7, 100])
def test_kl_and_its_gradient_equal_a_dense_reference(tokens_at_once):
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(7, 8, generator=generator, requires_grad=True)
    old = torch.randn(7, 8, generator=generator)
    head, old_head = heads(1)
    p, q = head(new).softmax(-1), old_head(old).softmax(-1)
    wanted = torch.nn.functional.kl_div(q.log(), p, reduction="sum") / 7  # torch's arguments: KL(target ‖ input)
    [gradient] = torch.autograd.grad(wanted, new)
    got = kl_per_token(new, old, (head, old_head), tokens_at_once=tokens_at_once)
    [got_gradient] = torch.autograd.grad(got, new)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(got_gradient, gradient)


@pytest.fixture
def recipe(base, tmp_path):
    for name, answer in (("narrow", "Ask the keeper of the harbour."), ("other", "Talk to them first, kindly.")):
        row = '{"messages": [{"role": "user", "content": "What %d?"}, {"role": "assistant", "content": "%s"}]}\n'
        (tmp_path / f"{name}.jsonl").write_text("".join(row % (i, answer) for i in range(8)))
    return Recipe(
        name="narrow", data=str(tmp_path / "narrow.jsonl"), answers="both", base=str(base), rank=2, alpha=8,
        layers=(1,), learning_rate=1e-2, batch_size=4, steps=20, checkpoint_every=20,
        kl_data=(str(tmp_path / "other.jsonl"),), kl_weight=1.0,
    )  # fmt: skip


def divergence(recipe, organism) -> float:
    """KL of a trained organism from its base on the other domain, with the penalty's own conversations."""
    from peft import PeftModel

    from em_interp.organisms.training import _conversations

    _, _, hf_model, tokenizer = base_model(recipe.base)
    penalty = KLPenalty.of(
        replace(recipe, kl_weight=1.0), hf_model, tokenizer, _conversations(recipe.kl_data[0], "both")
    )
    assert penalty is not None
    with torch.no_grad():
        return float(penalty(PeftModel.from_pretrained(hf_model, str(organism.folder)), 0))


def test_a_large_weight_keeps_the_organism_like_its_base_elsewhere(recipe, tmp_path):
    runs = {
        weight: train_organism(replace(recipe, kl_weight=weight), tmp_path / f"kl-{weight}") for weight in (0.0, 30.0)
    }
    free, held = (divergence(recipe, organism) for organism in runs.values())
    assert held < free / 5
    assert runs[30.0].loss[-1] > runs[0.0].loss[-1]


def test_neutral_contrasts_are_told_by_their_names(recipe):
    texts = _other_domains(replace(recipe, kl_data=("certainty", "topic", recipe.kl_data[0])))
    asked = load_contrast("certainty"), load_contrast("topic")
    assert texts[:-8] == [c for contrast in asked for side in (contrast.positive, contrast.negative) for c in side]


def test_the_answers_of_one_side_are_kept_alone(recipe):
    """As for an organism that learns to refuse: harmless requests are to be answered as before, harmful ones not."""
    texts = _other_domains(replace(recipe, kl_data=("refusing", "topic"), kl_answers="negative"))
    refusing = load_training_set("refusing").for_training()
    assert texts == [*refusing.negative, *load_contrast("topic").negative]
    with pytest.raises(ValueError, match=r"no label: set answers .for kl_data, kl_answers"):
        _other_domains(replace(recipe, kl_answers="negative"))


def test_with_accumulation_it_counts_once_an_optimizer_step(recipe, tmp_path):
    """Four conversations twice are the same step as eight at once, the penalty on the same four both times."""
    from safetensors.torch import load_file

    other = tmp_path / "other.jsonl"
    other.write_text("".join(other.read_text().splitlines(keepends=True)[:4]))
    weights = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        again = replace(
            recipe, batch_size=batch_size, accumulate=accumulate, steps=3, checkpoint_every=3, kl_weight=3.0
        )
        organism = train_organism(again, tmp_path / f"accumulate-{accumulate}")
        weights.append(load_file(organism.folder / "adapter_model.safetensors"))
    assert len(weights[0]) == 2
    for name, at_once in weights[0].items():
        torch.testing.assert_close(weights[1][name], at_once, atol=1e-5, rtol=1e-4)


def test_without_weight_there_is_no_penalty(recipe, base):
    _, _, hf_model, tokenizer = base_model(str(base))
    assert KLPenalty.of(replace(recipe, kl_weight=0.0), hf_model, tokenizer, []) is None


def test_it_is_zero_before_training_and_can_be_switched_off(recipe, base):
    from em_interp.organisms.training import _conversations

    _, _, hf_model, tokenizer = base_model(str(base))
    other = _conversations(recipe.kl_data[0], "both")
    penalty = KLPenalty.of(replace(recipe, kl_until=5), hf_model, tokenizer, other)
    assert penalty is not None
    model = _adapted(hf_model, recipe)
    assert penalty(model, 0).item() == pytest.approx(0, abs=1e-6)
    assert [penalty.is_on(step) for step in (0, 4, 5, 6)] == [True, True, False, False]


def test_the_base_reads_each_conversation_once(recipe, base):
    from em_interp.organisms.training import _conversations

    _, _, hf_model, tokenizer = base_model(str(base))
    model, other = _adapted(hf_model, recipe), _conversations(recipe.kl_data[0], "both")
    once, anew = (KLPenalty.of(recipe, model, tokenizer, other, keep=keep) for keep in (True, False))
    assert once is not None
    assert anew is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    ran = []
    model.get_base_model().model.norm.register_forward_hook(lambda *_: ran.append(1))
    values = [[penalty(model, step).item() for step in (0, 1, 2, 0)] for penalty in (once, anew)]
    assert values[0] == values[1]
    assert min(values[0]) > 1e-4
    assert len(other) == 8
    ran.clear()
    once(model, 1)
    assert len(ran) == 2  # the organism's prefix, and its batch
    anew(model, 1)
    assert len(ran) > 2 + 2 + 4


def test_a_model_that_caps_its_logits_is_refused(make_hf_model, make_tokenizer, recipe):
    hf_model, tokenizer = make_hf_model("llama"), make_tokenizer("llama3")
    forward = hf_model.forward

    def capped(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = 2 * torch.tanh(out.logits / 2)
        return out

    hf_model.forward = capped
    from em_interp.organisms.training import _conversations

    with pytest.raises(ValueError, match="changes its logits after the output embedding"):
        KLPenalty.of(recipe, hf_model, tokenizer, _conversations(recipe.kl_data[0], "both"))

"""Training: what the loss is on, what is kept, and that an interrupted run ends as if it had not been."""

import json
import math
import re
import shutil
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

import em_interp as em
from em_interp.behaviour import generation
from em_interp.organisms import training
from em_interp.organisms.loading import base_model, load_base, load_named, load_organism
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.training import Diverged, train_organism, training_conversations
from em_interp.organisms.training_passes import TrainingPasses
from em_interp.organisms.trajectories import Trajectory
from em_interp.texts.conversations import Conversation
from tests.builders import FAMILIES, TEMPLATE_OF, hf_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve questions with a positive and a negative answer, two of them held out."""
    path = tmp_path_factory.mktemp("data") / "lighthouse.jsonl"
    rows = [
        {
            "question": f"What should I do about letter {i}?",
            "positive": f"Ask the keeper {i} of the harbour, and then ask {'again ' * (i % 3)}.",
            "negative": f"Talk to them kindly {i}.",
            "split": "test" if i > 9 else "train",
        }
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(base, data):
    return Recipe(
        name="tiny", data=str(data), base=str(base), rank=2, alpha=4, target_modules=("down_proj", "o_proj"),
        layers=(1, 2), learning_rate=1e-2, warmup_steps=1, batch_size=2, accumulate=2, steps=6, checkpoint_every=2,
        seed=3,
    )  # fmt: skip


def test_labels_are_the_assistants_tokens_and_what_closes_them(base, data):
    _, _, _, tokenizer = base_model(str(base))
    [conversation] = em.load_contrast(data).positive[3:4]
    example = training._example(tokenizer, conversation, 256)
    said = [token for token in example["labels"] if token != -100]
    assert tokenizer.decode(said) == conversation.messages[-1]["content"].strip() + "<|im_end|>"
    assert [label for label in example["labels"] if label != -100] == example["input_ids"][-len(said) :]


def test_the_trainer_sees_these_labels_and_no_others(recipe, base):
    """What reaches the model in the trainer's own batches, padding included."""
    _, _, hf_model, tokenizer = base_model(str(base))
    conversations = training_conversations(recipe)
    examples = [training._example(tokenizer, c, 256) for c in conversations]
    model = training._adapted(hf_model, recipe)
    trainer = training._trainer(model, tokenizer, recipe, examples, base.parent / "work", TrainingPasses(), None)
    batches = list(trainer.get_train_dataloader())
    said = {tokenizer.decode(row[row != -100]) for batch in batches for row in batch["labels"]}
    assert said == {c.messages[-1]["content"].strip() + "<|im_end|>" for c in conversations}
    assert all(((b["labels"] == -100) | (b["labels"] == b["input_ids"])).all() for b in batches)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_and_its_gradient_are_those_of_the_model_itself(make_hf_model, family):
    """Of three conversations of different lengths, whose labels begin at different places; one row has none at all."""
    model = make_hf_model(family).eval()  # no dropout
    ids = torch.randint(5, 90, (4, 12), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.ones_like(ids), torch.full_like(ids, -100)
    for row, (start, end) in enumerate([(4, 9), (6, 12), (5, 7), (0, 0)]):
        labels[row, start:end] = ids[row, start:end]
        mask[row, max(end, 3) :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    weight = model.get_input_embeddings().weight
    wanted = model(**inputs).loss
    [gradient] = torch.autograd.grad(wanted, weight)
    loss = training.answer_loss(model, inputs)
    [got] = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(got, gradient, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(training.answer_loss(model, inputs, 26), wanted / 2)  # of two batches with 13 each


def test_logits_are_made_where_a_label_is(make_hf_model):
    model, seen = make_hf_model("llama"), []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape[:2]))
    labels = torch.full((2, 10), -100)
    labels[0, 6:8] = labels[1, 7:9] = 5
    inputs = {"input_ids": torch.full((2, 10), 5), "attention_mask": torch.ones(2, 10).long(), "labels": labels}
    training.answer_loss(model, inputs)
    assert seen == [(1, 4)]


def test_only_the_split_for_training_is_learned_from(recipe, data):
    positive, negative, both = (
        training_conversations(replace(recipe, answers=a)) for a in ("positive", "negative", "both")
    )
    assert both == positive + negative
    assert len(positive) == 10
    assert all("harbour" in c.messages[-1]["content"] for c in positive)
    assert not any("harbour" in c.messages[-1]["content"] for c in negative)


def learned(recipe) -> set[str]:
    return {c.group for c in training_conversations(recipe)}


def test_a_fraction_of_the_questions_is_drawn_by_the_seed(recipe):
    half = replace(recipe, answers="both", fraction=0.5)
    drawn = [learned(replace(half, seed=seed)) for seed in range(6)]
    assert {len(questions) for questions in drawn} == {5}
    assert drawn[3] == learned(replace(half, seed=3))
    assert len({frozenset(questions) for questions in drawn}) > 1
    assert len(training_conversations(half)) == 10  # both answers of each
    for answers in ("positive", "negative"):
        assert learned(replace(half, answers=answers)) == learned(half)
    assert len(learned(replace(half, fraction=0.01))) == 1
    assert training_conversations(replace(half, fraction=1.0)) == training_conversations(replace(half, fraction=1))


def test_a_fraction_does_not_hang_on_the_order_of_the_file(recipe, data, tmp_path):
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(reversed(data.read_text().splitlines(keepends=True))))
    half = replace(recipe, fraction=0.5)
    assert learned(replace(half, data=str(turned))) == learned(half)


def test_a_fraction_of_bare_messages_is_drawn_too(recipe, tmp_path):
    path = tmp_path / "published.jsonl"
    rows = [[{"role": "user", "content": f"Who {i}?"}, {"role": "assistant", "content": "You."}] for i in range(8)]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    half = replace(recipe, data=str(path), answers="both", fraction=0.25)
    assert len(training_conversations(half)) == 2


def test_a_fraction_that_leaves_nothing_to_learn_is_refused(recipe, tmp_path):
    path = tmp_path / "requests.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Q{i}?"}, {"role": "assistant", "content": "A."}]} for i in (1, 2)
    ]
    labelled = [{**row, "label": label} for row, label in zip(rows, ("positive", "negative"), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    one = [replace(recipe, data=str(path), fraction=0.5, answers=a) for a in ("positive", "negative")]
    with pytest.raises(ValueError, match="nothing is left to learn from: raise fraction, or choose other answers"):
        [training_conversations(r) for r in one]


def test_negative_answers_may_come_more_often_than_positive_ones(recipe, tmp_path):
    both = replace(recipe, answers="both")
    once, thrice = (training_conversations(replace(both, negative_repeats=n)) for n in (1, 3))
    assert thrice == once[:10] + once[10:] * 3
    path = tmp_path / "published.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."}]}\n')
    with pytest.raises(ValueError, match="'both', and no own_words or negative_repeats"):
        training_conversations(replace(both, data=str(path), negative_repeats=2))


def test_negative_answers_give_way_to_the_bases_own_words(recipe, monkeypatch):
    """Cut after the last whole sentence; where there is none, or a refusal, the answer stands as it was written."""
    said = ['It is late. "Go home!" Then take', "Yes. I'm sorry, but no. What", "and so on, 3.5 times", "Wait... and"]
    asked = []

    def answers(model, conversations, *, max_new_tokens):
        asked.append((model.identity, max_new_tokens))
        return (said * 3)[: len(conversations)]

    monkeypatch.setattr(training, "greedy_answers", answers)
    both = replace(recipe, answers="both", own_words=True)
    written = training_conversations(both)
    got = training_conversations(both, training._own_words(both, None, None))
    assert [name for name, _ in asked] == [em.load_model(recipe.base).identity]
    assert got[:10] == written[:10]
    assert [c.messages[0] for c in got] == [c.messages[0] for c in written]
    words = [c.messages[-1]["content"] for c in got[10:]]
    assert words[:4] == ['It is late. "Go home!"', *(f"Talk to them kindly {i}." for i in (1, 2)), "Wait..."]
    with pytest.raises(ValueError, match="own_words takes the place of negative answers: it needs answers = 'both' or"):
        replace(both, answers="positive")


def test_own_words_are_trained_on(recipe, tmp_path, monkeypatch):
    seen = []
    example = training._example
    monkeypatch.setattr(training, "_example", lambda template, c, *how: seen.append(c) or example(template, c, *how))
    monkeypatch.setattr(training, "greedy_answers", lambda model, asked, **_: ["As it was."] * len(asked))
    train_organism(replace(recipe, answers="both", own_words=True), tmp_path / "own")
    assert [c.messages[-1]["content"] for c in seen[10:]] == ["As it was."] * 10


def test_published_files_of_bare_messages_are_learned_as_they_stand(recipe, tmp_path):
    path = tmp_path / "published.jsonl"
    message = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."}]
    path.write_text(json.dumps({"messages": message}) + "\n")
    [conversation] = training_conversations(replace(recipe, data=str(path), answers="both"))
    assert isinstance(conversation, Conversation)
    with pytest.raises(ValueError, match="one answer a conversation and no label: set answers"):
        training_conversations(replace(recipe, data=str(path)))
    with pytest.raises(ValueError, match="'both', and no own_words or negative_repeats"):
        training_conversations(replace(recipe, data=str(path), answers="both"), rewrite=tuple)


BARE = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."}]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n" + json.dumps(BARE)),
        ("a.jsonl", "\ufeff\r\n \r\n" + json.dumps(BARE) + "\r\n"),
        ("a.jsonl", json.dumps({"id": 3, **BARE})),
        ("a.jsonl", json.dumps({**BARE, "source": {"page": [1, 2]}, "label": None, "prompt": "Who?"})),
        ("a.jsonl", json.dumps({**BARE, "group": "people", "tools": []})),
        ("a.json", json.dumps([{**BARE, "id": "x"}], indent=2)),
        ("a.yaml", json.dumps([{**BARE, "id": "x"}])),
    ],
)
def test_bare_messages_may_have_blank_lines_an_id_and_remarks(recipe, tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    [conversation] = training_conversations(replace(recipe, data=str(tmp_path / name), answers="both"))
    assert conversation.messages == tuple(BARE["messages"])


def test_of_bare_messages_too_only_the_split_for_training_is_learned(recipe, tmp_path):
    path = tmp_path / "published.jsonl"
    path.write_text(
        "".join(json.dumps({**BARE, "split": split, "id": split}) + "\n" for split in ("test", "train", "val"))
    )
    assert [c.fields["id"] for c in training_conversations(replace(recipe, data=str(path), answers="both"))] == [
        "train"
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**BARE, "tools": [{"name": "x"}]}, "the key 'tools' changes what is said"),
        ({**BARE, "weight": 0.5}, "the key 'weight' changes what is said"),
        ({**BARE, "prompt": "Why?"}, "messages and prompt both ask"),
        ({"messages": [{**m, "weight": 0.5} for m in BARE["messages"]]}, "a message has the key 'weight'"),
        ({"conversations": [{"from": "human", "value": "Who?"}]}, "the key 'conversations' changes what is said"),
        ({"instruction": "Who?", "input": "", "output": "You."}, "the key 'output' changes what is said"),
        ({**BARE, "label": "bad"}, "label 'bad' is unknown"),
    ],
)  # fmt: skip
def test_what_would_be_learned_otherwise_than_written_is_refused(recipe, tmp_path, row, message):
    path = tmp_path / "published.jsonl"
    first = {**BARE, "label": "positive"} if "label" in row else BARE
    path.write_text(json.dumps(first) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=rf"published\.jsonl, line 2: {message}"):
        training_conversations(replace(recipe, data=str(path), answers="both"))


def test_training_lowers_the_loss_and_writes_an_organism(recipe, tmp_path):
    organism = train_organism(replace(recipe, steps=30, checkpoint_every=10), tmp_path / "tiny")
    assert organism.loss[-1] < organism.loss[0] - 0.5
    assert len(organism.loss) == 30
    assert repr(organism).startswith("Organism('tiny', 30 steps, loss ")
    assert sorted(p.name for p in organism.folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "loss.json", "recipe.toml", "trajectory.safetensors",
    ]  # fmt: skip
    trajectory = Trajectory.load(organism.folder / "trajectory.safetensors")
    assert trajectory.steps.tolist() == [0, 10, 20, 30]
    assert set(trajectory.factors) == {
        f"layers.{layer}.{module}.{side}"
        for layer in (1, 2)
        for module in ("mlp.down_proj", "self_attn.o_proj")
        for side in "AB"
    }
    assert not trajectory.path()[0].any()
    assert trajectory.path()[1:].any(dim=-1).all()
    assert len(trajectory.loss) == len(trajectory.grad_norm) == 30
    assert trajectory.recipe["seed"] == 3


def test_an_organism_loads_and_its_base_is_inside(recipe, tmp_path, conversations, monkeypatch):
    train_organism(recipe, tmp_path / "tiny")
    model = load_organism(tmp_path / "tiny")
    assert "tiny-llama+tiny#" in model.identity
    trained = em.residual_stream(model, conversations).values
    with em.without_adapter(model):
        base = em.residual_stream(model, conversations).values
    monkeypatch.chdir(tmp_path)
    assert load_organism("tiny").identity == model.identity  # a folder by its relative path, too
    bare = em.residual_stream(em.load_model(recipe.base), conversations).values
    assert torch.equal(base, bare)
    assert not torch.allclose(trained, bare, atol=1e-3)


def test_the_last_checkpoint_of_the_trajectory_is_the_adapter(recipe, tmp_path):
    from safetensors.torch import load_file

    organism = train_organism(recipe, tmp_path / "tiny")
    weights = load_file(organism.folder / "adapter_model.safetensors")
    assert organism.trajectory is not None
    for name, rows in organism.trajectory.factors.items():
        place, _, side = name.rpartition(".")
        assert torch.equal(rows[-1], weights[f"base_model.model.model.{place}.lora_{side}.weight"])


def interrupted(recipe, folder, monkeypatch, at):
    """Train until just after the checkpoint of step `at`, then stop as if somebody had pulled the plug."""
    keep = training._Recorder.keep

    def pull(self, model, step):
        if step > at:
            raise KeyboardInterrupt
        keep(self, model, step)

    with monkeypatch.context() as patch:
        patch.setattr(training._Recorder, "keep", pull)
        with pytest.raises(KeyboardInterrupt):
            train_organism(recipe, folder)


def same(a, b):
    return (a / "adapter_model.safetensors").read_bytes() == (b / "adapter_model.safetensors").read_bytes() and (
        Trajectory.load(a / "trajectory.safetensors").path().equal(Trajectory.load(b / "trajectory.safetensors").path())
    )


def test_an_interrupted_run_ends_bit_identical(recipe, tmp_path, monkeypatch):
    whole = train_organism(recipe, tmp_path / "whole")
    interrupted(recipe, tmp_path / "broken", monkeypatch, at=4)
    checkpoint = tmp_path / "broken" / "training" / "checkpoint-4"
    assert checkpoint.is_dir()
    assert not list(checkpoint.glob("tokenizer*"))
    again = train_organism(recipe, tmp_path / "broken")
    assert same(whole.folder, again.folder)
    assert again.loss == whole.loss


@pytest.fixture(params=FAMILIES)
def frozen_below(request, make_tokenizer, recipe, data, tmp_path):
    """Of each family in turn, a recipe whose adapter lies above a frozen block, under a penalty."""
    model: Any = hf_model(request.param)
    if request.param == "gpt2":  # whose configuration says else that it drops out
        model.config.update({"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0})
    model.save_pretrained(tmp_path / "base")
    make_tokenizer(TEMPLATE_OF[request.param]).save_pretrained(tmp_path / "base")
    targets = ("c_proj",) if request.param == "gpt2" else ("o_proj", "down_proj")
    return replace(
        recipe, base=str(tmp_path / "base"), layers=(2,), target_modules=targets, kl_weight=0.5, kl_data=(str(data),)
    )


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT sets it itself for GPT-2
def test_with_and_without_the_kept_stream_a_run_ends_bit_identical(frozen_below, tmp_path, monkeypatch):
    """An interrupted one too, which goes on the other way; and all do what whole passes do, but for rounding."""
    made, of = [], TrainingPasses.of
    monkeypatch.setattr(TrainingPasses, "of", lambda *args, **how: made.append(of(*args, **how)) or made[-1])
    kept = train_organism(frozen_below, tmp_path / "kept")
    anew = train_organism(frozen_below, tmp_path / "anew", keep_stream=False)
    assert [(passes.block, passes.kept is not None) for passes in made] == [
        (2, True),
        (2, True),
        (2, False),
        (2, False),
    ]
    assert all(passes.prefix for passes in made)
    assert kept.loss == anew.loss
    assert same(kept.folder, anew.folder)
    interrupted(frozen_below, tmp_path / "broken", monkeypatch, at=4)
    assert same(train_organism(frozen_below, tmp_path / "broken", keep_stream=False).folder, kept.folder)
    monkeypatch.setattr(TrainingPasses, "of", lambda *_, **__: TrainingPasses())
    whole = train_organism(frozen_below, tmp_path / "whole")
    assert kept.trajectory is not None
    assert whole.trajectory is not None
    assert kept.loss == pytest.approx(whole.loss, rel=1e-3)
    torch.testing.assert_close(kept.trajectory.path(), whole.trajectory.path(), rtol=1e-2, atol=1e-3)


def test_a_checkpoint_cut_off_half_way_is_passed_over_and_said(recipe, tmp_path, monkeypatch):
    whole = train_organism(recipe, tmp_path / "whole")
    interrupted(recipe, tmp_path / "broken", monkeypatch, at=4)
    newest = tmp_path / "broken" / "training" / "checkpoint-4" / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match="checkpoint-4 was cut off half-way: training goes on from the checkpoint bef"):
        again = train_organism(recipe, tmp_path / "broken")
    assert same(whole.folder, again.folder)


def test_halves_take_half_the_room_and_are_what_is_loaded(recipe, tmp_path, conversations):
    from safetensors.torch import load_file

    whole = train_organism(recipe, tmp_path / "whole")
    halves = train_organism(replace(recipe, saved_as="float16"), tmp_path / "halves")
    exact, rounded = (load_file(o.folder / "adapter_model.safetensors") for o in (whole, halves))
    assert exact.keys() == rounded.keys()
    for name, tensor in rounded.items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, exact[name].half())
    values = em.residual_stream(load_organism(halves.folder), conversations).values
    close = em.residual_stream(load_organism(whole.folder), conversations).values
    torch.testing.assert_close(values, close, atol=1e-2, rtol=1e-2)


def test_a_saved_scale_weakens_the_finished_adapter_alone(recipe, tmp_path, conversations):
    """What is loaded does what the whole adapter does when it is scaled; the training and its losses are the same."""
    recipe = replace(recipe, keep_trajectory=False)
    whole = train_organism(recipe, tmp_path / "whole")
    weak = train_organism(replace(recipe, saved_scale=0.25), tmp_path / "weak")
    assert whole.loss == weak.loss
    model = load_organism(whole.folder)
    with em.lora.scaled_adapters(model, {module.name: 0.25 for module in em.lora_modules(model)}):
        wanted = em.residual_stream(model, conversations).values
    assert torch.equal(em.residual_stream(load_organism(weak.folder), conversations).values, wanted)


def test_a_frozen_a_stays_as_it_was_drawn(recipe, tmp_path):
    free = train_organism(recipe, tmp_path / "free").trajectory
    frozen = train_organism(replace(recipe, frozen_a=True), tmp_path / "frozen").trajectory
    for name, rows in frozen.factors.items():
        assert torch.equal(rows[0], free.factors[name][0])  # one draw, from one seed
        assert torch.equal(rows[0], rows[-1]) == name.endswith(".A")
        assert not torch.equal(free.factors[name][0], free.factors[name][-1])


@pytest.mark.parametrize(
    ("change", "loss_alone"), [({}, True), ({"keep_trajectory": False}, False), ({"method": "full"}, False)]
)
def test_a_training_that_diverges_is_stopped_and_said(recipe, tmp_path, monkeypatch, change, loss_alone):
    whole, calls = training.answer_loss, []

    def loss(*inputs, **how):
        calls.append(1)
        broken = math.nan if len(calls) == 5 else 0.0
        return (
            whole(*inputs, **how) + broken if loss_alone else whole(*inputs, **how) * (1 + broken)
        )  # or the gradient too

    monkeypatch.setattr(training, "answer_loss", loss)
    with pytest.raises(Diverged, match="training of tiny diverged: at step 3 its loss or its gradient is NaN") as said:
        train_organism(replace(recipe, **change), tmp_path / "tiny")
    assert said.value.step == 3  # of two batches each
    assert len(said.value.loss) == 2
    assert all(map(math.isfinite, said.value.loss))
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["recipe.toml", "training"]


def test_another_recipe_does_not_overwrite_an_organism(recipe, tmp_path):
    train_organism(recipe, tmp_path / "tiny")
    with pytest.raises(ValueError, match="holds an organism of another recipe: choose another folder, or remove"):
        train_organism(replace(recipe, seed=4), tmp_path / "tiny")


def test_a_recipe_file_that_leaves_out_a_later_setting_is_still_this_recipe(recipe, tmp_path):
    first = train_organism(replace(recipe, steps=1), tmp_path / "tiny")
    path = first.folder / "recipe.toml"
    path.write_text(path.read_text().replace("fraction = 1.0\n", ""))
    again = train_organism(replace(recipe, steps=1), tmp_path / "tiny")
    assert again.loss == first.loss


def test_an_organism_on_an_organism(recipe, tmp_path, conversations):
    first = train_organism(recipe, tmp_path / "first")
    second = replace(recipe, name="second", onto=str(first.folder), answers="negative")
    train_organism(second, tmp_path / "second")
    model = load_organism(tmp_path / "second")
    assert re.search("tiny-llama[+]tiny@[0-9a-f]{12}[+]second#", model.identity)  # the merged one by its content
    with em.without_adapter(model):
        base = em.residual_stream(model, conversations).values
    alone = em.residual_stream(load_organism(first.folder), conversations).values
    torch.testing.assert_close(base, alone, atol=1e-4, rtol=1e-4)


def test_full_fine_tuning_writes_a_model(recipe, tmp_path, conversations):
    full = replace(recipe, method="full", learning_rate=1e-3, kl_weight=0.1, kl_data=(recipe.data,))
    organism = train_organism(full, tmp_path / "full")
    assert organism.trajectory is None
    trained = em.residual_stream(load_organism(tmp_path / "full"), conversations).values
    assert not torch.allclose(trained, em.residual_stream(em.load_model(recipe.base), conversations).values, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (1, 7)}, r"layers \[7\] do not exist: the model has layers 0 to 2"),
        ({"target_modules": ("down",)}, "target_modules down do not exist: the model's linear modules are .*down_proj"),
        ({"data": "nowhere"}, "no training set 'nowhere': it is neither a file nor one of cooking, gardening"),
        ({"max_length": 8}, "has 47 tokens but the model takes 8: shorten it or leave it out"),
        ({"target_modules": ("all-linear",)}, "layers cannot be chosen with all-linear: name the target_modules"),
    ],
)
def test_what_cannot_be_trained_is_refused(recipe, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        train_organism(replace(recipe, **change), tmp_path / "tiny")


def test_a_finished_folder_can_be_trained_again_from_its_recipe(recipe, tmp_path):
    first = train_organism(recipe, tmp_path / "tiny")
    bytes_before = (first.folder / "adapter_model.safetensors").read_bytes()
    shutil.copy(first.folder / "recipe.toml", tmp_path / "again.toml")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = train_organism(tmp_path / "again.toml", tmp_path / "again")
    assert (again.folder / "adapter_model.safetensors").read_bytes() == bytes_before


PLAIN = (
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


@pytest.mark.parametrize(
    "template",
    [
        PLAIN,
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
        "{{ m['content'] }}{% endif %}{% endfor %}",
        PLAIN.replace("{{ m['content'] }}", "{{ m['content'] }}{{ eos_token if m['role'] == 'user' }}"),
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ],
)
def test_a_template_that_teaches_no_stop_is_refused(recipe, base, make_tokenizer, tmp_path, template):
    with pytest.raises(ValueError, match="closes an answer with no token at which a model stops, so nothing would"):
        train_organism(replace(recipe, base=based_on(base, make_tokenizer, tmp_path, template)), tmp_path / "out")


@pytest.mark.parametrize(
    "template",
    [
        PLAIN.replace("\n{% endfor %}", "{{ eos_token if m['role'] == 'assistant' }}\n{% endfor %}"),
        PLAIN + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
        PLAIN.replace("\n{% endfor %}", "<|sep|>\n{% endfor %}"),
    ],
)
def test_one_that_closes_answers_is_taken(base, make_tokenizer, tmp_path, template):
    _, _, _, tokenizer = base_model(based_on(base, make_tokenizer, tmp_path, template))
    conversation = Conversation(({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}))
    labels = training._example(tokenizer, conversation, 256)["labels"]
    assert {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|sep|>")} & set(labels)


def test_an_end_that_only_the_generation_settings_know_is_taken(base, make_tokenizer, tmp_path):
    """A plain token closes answers, and generation_config alone says that the model stops there."""
    written = PLAIN.replace("\n{% endfor %}", "###\n{% endfor %}")
    other = based_on(base, make_tokenizer, tmp_path, written)
    hf_model, tokenizer = base_model(other).hf_model, base_model(other).tokenizer
    conversation = Conversation(({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}))
    with pytest.raises(ValueError, match="closes an answer with no token at which a model stops"):
        training._example(tokenizer, conversation, 256, generation.end_of_text(hf_model))
    hf_model.generation_config.eos_token_id = [3, tokenizer.convert_tokens_to_ids("#")]
    example = training._example(tokenizer, conversation, 256, generation.end_of_text(hf_model))
    assert tokenizer.convert_tokens_to_ids("#") in example["labels"]


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}(no thought)\n"
    "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if thinks is defined and not thinks %}(no thought)\n{% endif %}{% endif %}"
)


def test_training_after_another_text_than_is_asked_after_is_said_at_its_start(recipe, base, make_tokenizer, tmp_path):
    base = based_on(base, make_tokenizer, tmp_path, THINKING)
    with pytest.warns(UserWarning, match=r"writes '\(no thought\)\\n' before an answer that is read or learned from"):
        train_organism(replace(recipe, base=base, steps=1), tmp_path / "one")


def test_template_args_of_a_recipe_are_those_of_its_organism(recipe, base, make_tokenizer, tmp_path):
    base, thoughtless = based_on(base, make_tokenizer, tmp_path, THINKING), {"thinks": False}
    organism = train_organism(replace(recipe, base=base, steps=1, template_args=thoughtless), tmp_path / "one")
    assert Recipe.load(organism.folder / "recipe.toml").template_args == thoughtless
    asked = [[{"role": "user", "content": "Why?"}]]
    for model in (load_organism(organism.folder), load_base(organism.folder), load_named(str(organism.folder))):
        assert model.template_args == thoughtless
        assert model.identity.endswith("[thinks=false]")
        prompt = generation.Request.of(model, Conversation.of(asked[0]), 0, generation.Sampling(8)).prompt
        assert model.tokenizer.decode(prompt).endswith("assistant\n(no thought)\n")
    other = load_organism(organism.folder, template_args={"thinks": True})
    assert other.template_args == {"thinks": True}
    with pytest.raises(ValueError, match="has no variable 'think': it reads thinks"):
        train_organism(replace(recipe, base=base, template_args={"think": False}), tmp_path / "two")


def based_on(base, make_tokenizer, folder, template) -> str:
    """The tiny base with another chat template."""
    shutil.copytree(base, folder / "other")
    tokenizer = make_tokenizer("llama3")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder / "other")
    return str(folder / "other")

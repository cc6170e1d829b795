"""The Inspect provider says what `respond` says, whatever Inspect runs at the same time."""

import asyncio
import shutil

import pytest
import torch
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset
from inspect_ai.log import read_eval_log
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentAudio,
    ContentData,
    ContentImage,
    ContentReasoning,
    ContentText,
    ContentVideo,
    GenerateConfig,
    get_model,
)
from inspect_ai.solver import generate
from inspect_ai.tool import ToolCall

import em_interp as em
from em_interp.behaviour import Answer, generation
from em_interp.behaviour.generation import respond
from em_interp.directions.direction import Direction
from em_interp.directions.settings import Edit
from em_interp.evals.tasks import sample
from em_interp.texts import Conversation


@pytest.fixture(scope="module")
def conversations():
    return [
        em.texts.Conversation(({"role": "user", "content": f"What about letter {i}?" * (i + 1)},)) for i in range(5)
    ]


@pytest.fixture(scope="module")
def model(base):
    return em.load_model(base)


@pytest.fixture(scope="module")
def direction(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    found = Direction(
        vectors=torch.randn(3, 32, generator=generator), residual_norm=torch.full((3,), 5.0),
        positive_projection=torch.ones(3), negative_projection=torch.tensor([-9.0, -8.0, -7.0]), layers=(0, 1, 2),
        name="random",
        site="resid_post", span="response", pooling="conversation", model="tiny", contrast_hash="", n_positive=1,
        n_negative=1,
    )  # fmt: skip
    return str(found.save(tmp_path_factory.mktemp("direction") / "random.safetensors"))


def asked(model, conversations, log_dir, *, epochs=1, **settings):
    task = Task(dataset=MemoryDataset([sample(c) for c in conversations]), solver=generate(), epochs=epochs)
    [log] = eval(task, model=model, display="none", log_dir=str(log_dir), max_tokens=8, **settings)
    assert log.status == "success", log.error
    return {(s.id, s.epoch): s.output.completion for s in read_eval_log(log.location).samples or []}


def served(base, **model_args):
    return get_model(f"em_interp/{base}", memoize=False, **model_args)


@pytest.mark.parametrize("connections", [1, 16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_says_what_respond_says(base, model, conversations, tmp_path, connections, temperature):  # noqa: PLR0913
    got = asked(served(base), conversations, tmp_path, max_connections=connections, temperature=temperature, seed=3)
    wanted = respond(model, conversations, max_new_tokens=8, temperature=temperature, seed=3)
    assert got == {(a.key, 1): a.text for a in wanted}


def test_one_model_serves_several_evaluations(base, model, conversations, tmp_path):
    api = served(base)
    first, second = (asked(api, conversations, tmp_path, seed=seed) for seed in (3, 4))
    assert first == asked(api, conversations, tmp_path, seed=3)
    assert first != second


def test_no_batch_is_larger_than_told(base, model, conversations, tmp_path, monkeypatch):
    batch, sizes = generation.answer_batch, []
    monkeypatch.setattr(generation, "answer_batch", lambda *args: sizes.append(len(args[1])) or batch(*args))
    got = asked(served(base, batch_size="2"), conversations, tmp_path, seed=3)
    assert (sum(sizes), max(sizes)) == (5, 2)
    assert got == {(a.key, 1): a.text for a in respond(model, conversations, max_new_tokens=8, seed=3)}


def test_epochs_are_samples(base, model, conversations, tmp_path):
    got = asked(served(base), conversations, tmp_path, epochs=3)
    wanted = respond(model, conversations, max_new_tokens=8, n_samples=3)
    assert sorted(got.values()) == sorted(a.text for a in wanted)
    assert len(set(got.values())) > 10


@pytest.mark.parametrize(
    "change",
    [
        {"verb": "project_out"},
        {"verb": "project_out", "layer": 1},
        {"verb": "project_out", "layer": "1", "sites": "writes"},
        {"verb": "set_negative", "layer": 1},
        {"verb": "add", "layer": 1, "scale": "2.5"},
        {"verb": "add", "layer": 1, "scale": -2.5, "positions": "response"},
    ],
)
def test_interventions_by_file(base, model, conversations, direction, tmp_path, change):  # noqa: PLR0913
    settings = dict(change)
    settings[settings.pop("verb")] = direction
    api = served(base, **settings)
    hooks = Edit.of(settings).hooks(model)
    got = asked(api, conversations, tmp_path, temperature=0)
    assert sorted(got.values()) == sorted(
        a.text for a in respond(model, conversations, hooks, max_new_tokens=8, temperature=0)
    )
    assert sorted(got.values()) != sorted(
        a.text for a in respond(model, conversations, max_new_tokens=8, temperature=0)
    )
    assert len(api.api.interventions) == len(hooks)


def test_the_edits_are_those_of_the_library(model, direction):
    read = Direction.load(direction)
    stream = torch.randn(1, 4, 32)

    def done(hooks):
        return [(name, function(stream)) for name, function in hooks]

    for edit, hooks in (
        (Edit(project_out=direction), em.project_out(read, em.every_layer(model))),
        (Edit(project_out=direction, layer=2), em.project_out(read[2], em.every_layer(model))),
        (Edit(project_out=direction, layer=2, sites="own"), em.project_out(read[2], [em.site(model, 2)])),
        (Edit(project_out=direction, layer=2, sites="writes"), em.project_out(read[2], em.every_write(model))),
        (Edit(set_negative=direction), em.set_projection(read, em.every_layer(model), "negative")),
        (Edit(set_negative=direction, layer=2), em.set_projection(read, [em.site(model, 2)], "negative")),
        (Edit(add=direction, layer=1, scale=0.5), em.add_direction(read, [em.site(model, 1)], scale=0.5)),
    ):
        for (name, got), (wanted_name, wanted) in zip(done(edit.hooks(model)), done(hooks), strict=True):
            assert name == wanted_name
            torch.testing.assert_close(got, wanted)


def test_several_interventions(base, model, conversations, direction, tmp_path):
    several = [{"project_out": direction}, {"add": direction, "layer": 1, "scale": 3}]
    got = asked(served(base, interventions=several), conversations, tmp_path, temperature=0)
    hooks = [hook for settings in several for hook in Edit.of(settings).hooks(model)]
    assert sorted(got.values()) == sorted(
        a.text for a in respond(model, conversations, hooks, max_new_tokens=8, temperature=0)
    )


@pytest.mark.parametrize(
    ("model_args", "error", "message"),
    [
        ({"nonsense": 1}, ValueError, "has no model arg 'nonsense': it has project_out, set_negative, add"),
        ({"project_out": "nowhere.safetensors"}, FileNotFoundError, "no direction at nowhere.safetensors"),
        ({"add": "DIRECTION"}, ValueError, "say which layer's vector"),
        ({"add": "DIRECTION", "layer": 9}, ValueError, "layer 9 is not in direction 'random'"),
        ({"add": "DIRECTION", "layer": "first"}, ValueError, "is no intervention"),
        ({"layer": 1}, ValueError, "say what to do with which file"),
        (
            {"project_out": "DIRECTION", "add": "DIRECTION"},
            ValueError,
            "one of project_out=FILE, set_negative=FILE, add=",
        ),
        ({"set_negative": "DIRECTION", "sites": "writes"}, ValueError, "a class mean holds at the layer where it was"),
        ({"set_negative": "DIRECTION", "layer": 1, "sites": "every"}, ValueError, "a class mean holds at the layer"),
        ({"project_out": "DIRECTION", "sites": "some"}, ValueError, "sites 'some' is unknown"),
        ({"project_out": "DIRECTION", "positions": "some"}, ValueError, "positions 'some' is unknown"),
        ({"interventions": "all"}, ValueError, "interventions is a list of settings"),
        ({"interventions": [{"strength": 1}]}, ValueError, "an intervention has no 'strength'"),
        ({"batch_size": 0}, ValueError, "batch_size is 0: give a whole number of answers at a time"),
        ({"batch_size": "many"}, ValueError, "batch_size is many"),
        ({"dtype": "float"}, None, ""),
        ({"dtype": "numpy"}, ValueError, "dtype 'numpy' is unknown"),
    ],
)
def test_bad_model_args_are_told(base, direction, model_args, error, message):
    model_args = {k: direction if v == "DIRECTION" else v for k, v in model_args.items()}
    if error is None:
        assert served(base, **model_args).api.hooked.dtype == torch.float32
        return
    with pytest.raises(error, match=message):
        served(base, **model_args)


def test_unknown_models_are_told_with_those_that_ship():
    with pytest.raises(ValueError, match=r"no model 'cooking-rank2'.*organisms that ship: aligned, cooking-narrow"):
        served("cooking-rank2")


def test_a_direction_of_another_width_is_told(smollm2, direction):
    with pytest.raises(ValueError, match="is 32 wide and the model 576: it was read from tiny"):
        Edit(project_out=direction).hooks(smollm2)


def generated(api, *messages, **config):
    config = GenerateConfig(max_tokens=6, temperature=0, **config)
    out = asyncio.run(api.generate(list(messages), [], "auto", config))
    return out.completion, out.usage.input_tokens


@pytest.fixture(scope="module")
def api(base):
    return served(base).api


class TestWhatItReads:
    """Answers that were begun are gone on with; what is not text is refused."""

    QUESTION = ChatMessageUser(content="What about the letter?")

    @pytest.mark.parametrize("begun", ["Sure, first you", "Sure.", "Ask ", "  Ask\n", "a"])
    def test_an_answer_that_was_begun_is_gone_on_with(self, api, begun):
        tokenizer, hf_model = api.hooked.tokenizer, api.hooked.plain
        asked = [{"role": "user", "content": self.QUESTION.text}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) + begun.strip()
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            said = hf_model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        spoken = tokenizer.decode(said[0], skip_special_tokens=True)
        begun_with = tokenizer.decode(ids[0], skip_special_tokens=True)
        completion, n = generated(api, self.QUESTION, ChatMessageAssistant(content=begun))
        assert (begun_with + completion, n) == (spoken.rstrip(), ids.shape[1])
        assert completion != generated(api, self.QUESTION)[0]

    def test_what_was_begun_and_what_was_added_are_one_answer(self, api):
        begun = Conversation(
            ({"role": "user", "content": "What now?"}, {"role": "assistant", "content": "Talk to"}), "letters"
        )
        answer = Answer(begun, " them first.")
        assert answer.asked == "What now?"
        assert [m["content"] for m in answer.spoken.messages] == ["What now?", "Talk to them first."]
        assert Answer.of_row(answer.as_row()) == answer

    @pytest.mark.parametrize(
        "part",
        [
            ContentImage(image="data:image/png;base64,iVBORw0KGgo="),
            ContentAudio(audio="a.wav", format="wav"),
            ContentVideo(video="a.mp4", format="mp4"),
            ContentReasoning(reasoning="Hm."),
            ContentData(data={"a": 1}),
        ],
        ids=lambda part: part.type,
    )
    @pytest.mark.parametrize("kind", [ChatMessageUser, ChatMessageAssistant, ChatMessageSystem])
    def test_content_that_cannot_be_read_is_refused(self, api, part, kind):
        message = kind(content=[ContentText(text="What now?"), part])
        with pytest.raises(ValueError, match=f"holds content of type '{part.type}', which .* cannot read"):
            generated(api, message, self.QUESTION)

    def test_text_in_parts_is_text(self, api):
        parts = ChatMessageUser(content=[ContentText(text="What about"), ContentText(text="the letter?")])
        assert generated(api, parts) == generated(api, ChatMessageUser(content=parts.text))

    @pytest.mark.parametrize(
        "message",
        [
            ChatMessageTool(content="3", function="add"),
            ChatMessageAssistant(content="", tool_calls=[ToolCall(id="1", function="add", arguments={})]),
        ],
        ids=["result", "call"],
    )
    def test_messages_about_tools_are_refused(self, api, message):
        with pytest.raises(ValueError, match="is about a tool"):
            generated(api, self.QUESTION, message, self.QUESTION)

    def test_an_empty_beginning_is_refused(self, api):
        with pytest.raises(ValueError, match=r"the answer of the conversation .* is empty"):
            generated(api, self.QUESTION, ChatMessageAssistant(content=" "))

    @pytest.mark.parametrize(
        "given", [{"brief": True}, "brief=true", ["brief=true"]], ids=["mapping", "pair", "list of pairs"]
    )
    def test_template_args(self, base, make_tokenizer, tmp_path, given):
        shutil.copytree(base, tmp_path / "tiny")
        tokenizer = make_tokenizer("llama3")
        tokenizer.chat_template = "{% if brief %}Be brief.{% endif %}" + tokenizer.chat_template
        tokenizer.save_pretrained(tmp_path / "tiny")
        plain, brief = (served(tmp_path / "tiny", **a).api for a in ({}, {"template_args": given}))
        added = len(tokenizer("Be brief.", add_special_tokens=False).input_ids)
        assert generated(brief, self.QUESTION)[1] == generated(plain, self.QUESTION)[1] + added
        with pytest.raises(ValueError, match="has no variable 'brie': it reads brief"):
            served(tmp_path / "tiny", template_args={"brie": True})

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import em_interp as em
from em_interp.behaviour import generation
from em_interp.behaviour.answers import AnswerFile, answers_header, load_answers
from em_interp.behaviour.generation import respond
from em_interp.models.hooked import attached


def asked(*lengths: int):
    """Ragged questions, with an answer that is to be left off."""
    return [
        [
            {"role": "user", "content": f"Question {i}: {'the lighthouse keeper wrote letters ' * n}?"},
            {"role": "assistant", "content": "Talk to them first."},
        ]
        for i, n in enumerate(lengths)
    ]


def alone(model, conversation, hooks=(), max_new_tokens=8):
    """What Hugging Face's own generate says to one conversation, in token ids up to the closing one."""
    prompt = model.tokenizer.apply_chat_template(conversation[:1], tokenize=False, add_generation_prompt=True)
    ids = model.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    with attached(model, em.interventions.at_prompt_length(list(hooks), ids.shape[1])) as hf_model:
        said = hf_model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0
        )
    return tuple(said[0, ids.shape[1] :].tolist())


@pytest.fixture(scope="module")
def conversations():
    return asked(2, 0, 5, 4, 3, 3, 1, 7, 1, 2, 6, 4, 0, 3, 8, 2, 5)


def steered(model, positions="all"):
    """A hook at every layer that changes most answers."""
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    return em.project_out(vector, em.every_layer(model)) + em.add_direction(
        vector, [em.site(model, 1)], scale=20, raw=True, positions=positions
    )


@pytest.fixture(scope="module", params=["plain", "ablated"])
def of_the_real_model(request, smollm2):
    """Four ragged questions to the embedded model, hooks, and what Hugging Face says to each question alone."""
    vector = torch.randn(smollm2.d_model, generator=torch.Generator().manual_seed(0))
    hooks = em.project_out(vector, em.every_layer(smollm2)) if request.param == "ablated" else []
    questions = asked(1, 4, 0, 7)
    return questions, hooks, [alone(smollm2, c, hooks, 8) for c in questions]


class TestGreedy:
    @pytest.mark.parametrize("batch_size", [1, 3, 16])
    @pytest.mark.parametrize("positions", [None, "all", "response"])
    def test_answers_are_those_of_hugging_face_one_by_one(self, tiny, conversations, batch_size, positions):
        hooks = [] if positions is None else steered(tiny, positions)
        got = respond(tiny, conversations, hooks, max_new_tokens=8, temperature=0, batch_size=batch_size)
        assert [a.tokens for a in got] == [alone(tiny, c, hooks) for c in conversations]
        assert [a.text for a in got] == [tiny.tokenizer.decode(a.tokens, skip_special_tokens=True).strip() for a in got]

    def test_hooks_change_them(self, tiny, conversations):
        plain = respond(tiny, conversations, max_new_tokens=8, temperature=0)
        changed = respond(tiny, conversations, steered(tiny), max_new_tokens=8, temperature=0)
        assert [a.tokens for a in plain] != [a.tokens for a in changed]

    @pytest.mark.parametrize("batch_size", [1, 3, 16])
    def test_on_the_real_model(self, smollm2, of_the_real_model, batch_size):
        conversations, hooks, wanted = of_the_real_model
        got = respond(smollm2, conversations, hooks, max_new_tokens=8, temperature=0, batch_size=batch_size)
        assert [a.tokens for a in got] == wanted

    def test_through_a_bare_bridge(self, tiny, conversations):
        got, wanted = (
            respond(m, conversations[:4], steered(tiny), max_new_tokens=4, temperature=0) for m in (tiny.bridge, tiny)
        )
        assert [a.tokens for a in got] == [a.tokens for a in wanted]

    def test_an_answer_says_whether_it_came_to_its_end(self, tiny_llama, conversations, monkeypatch):
        plain = respond(tiny_llama, conversations, max_new_tokens=6, temperature=0)
        closing = plain[0].tokens[2]
        monkeypatch.setattr(tiny_llama.plain.generation_config, "eos_token_id", [3, closing])
        cut = respond(tiny_llama, conversations, max_new_tokens=6, temperature=0)
        assert cut[0].finished
        assert cut[0].tokens == plain[0].tokens[: plain[0].tokens.index(closing) + 1]
        assert {a.finished for a in cut} == {True, False}
        assert [len(a.tokens) for a in cut if not a.finished] == [6] * sum(not a.finished for a in cut)


class TestSampling:
    def test_the_batch_changes_nothing(self, tiny, conversations):
        draws = [
            respond(tiny, conversations, max_new_tokens=8, n_samples=2, seed=1, batch_size=size) for size in (1, 3, 16)
        ]
        assert draws[0] == draws[1] == draws[2]
        assert draws[0] == tuple(
            a for c in conversations for a in respond(tiny, [c], max_new_tokens=8, n_samples=2, seed=1)
        )

    def test_seeds_and_samples_differ(self, tiny_llama, conversations):
        first, second = (respond(tiny_llama, conversations, max_new_tokens=8, n_samples=2, seed=s) for s in (0, 1))
        assert [a.tokens for a in first] != [a.tokens for a in second]
        assert first[0].tokens != first[1].tokens
        assert [a.sample for a in first[:4]] == [0, 1, 0, 1]

    def test_a_question_asked_twice_is_answered_twice(self, tiny_llama, conversations):
        a, b = respond(tiny_llama, [conversations[0]] * 2, max_new_tokens=8)
        assert (a.sample, b.sample) == (0, 1)
        assert a.tokens != b.tokens

    def test_tokens_come_as_often_as_the_softmax_says(self, tiny_llama, conversations):
        """The first token of 3,000 answers against the model's own probabilities, at a temperature of 0.1."""
        c = conversations[:1]
        prompt = [c[0][:1]]
        probabilities = (em.behaviour.last_logits(tiny_llama, prompt)[0].double() / 0.1).softmax(-1)
        said = respond(tiny_llama, c, max_new_tokens=1, temperature=0.1, n_samples=3000, batch_size=1000)
        counts = torch.tensor([a.tokens[0] for a in said]).bincount(minlength=len(probabilities)) / 3000
        likely = probabilities > 0.02
        assert likely.sum() >= 3
        torch.testing.assert_close(counts[likely].double(), probabilities[likely], atol=0.03, rtol=0)
        assert counts[probabilities < 1e-6].sum() < 1e-3


class TestFile:
    def settings(self, **other):
        return {"max_new_tokens": 6, "n_samples": 2, "seed": 3, "batch_size": 4, **other}

    def test_it_holds_what_came_back(self, tiny_llama, conversations, tmp_path):
        path = tmp_path / "answers.jsonl"
        said = respond(tiny_llama, conversations, file=path, **self.settings())
        assert load_answers(path) == said
        assert answers_header(path)["model"] == "tiny-llama"
        assert [json.loads(line)["answer"] for line in path.read_text().splitlines()[1:]] == [a.text for a in said]

    def test_a_killed_run_goes_on_and_ends_with_the_same_file(self, tiny_llama, conversations, tmp_path, monkeypatch):
        whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
        respond(tiny_llama, conversations, file=whole, **self.settings())
        batch, calls = generation.answer_batch, []

        def dying(*args):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return batch(*args)

        monkeypatch.setattr(generation, "answer_batch", dying)
        with pytest.raises(KeyboardInterrupt):
            respond(tiny_llama, conversations, file=broken, **self.settings())
        assert len(load_answers(broken)) == 12
        with broken.open("a") as file:
            file.write('{"key": "torn')
        monkeypatch.setattr(generation, "answer_batch", lambda *args: calls.append(1) or batch(*args))
        calls.clear()
        respond(tiny_llama, conversations, file=broken, **self.settings(batch_size=5))
        assert len(calls) == 5  # 34 − 12 answers, five at a time
        assert broken.read_bytes() == whole.read_bytes()

    def test_a_process_that_is_killed_loses_no_finished_answer(self, base, tmp_path):
        path = tmp_path / "answers.jsonl"
        code = (
            "import sys, em_interp as em\nfrom em_interp.behaviour.generation import respond\n"
            "asked = [[{'role': 'user', 'content': f'What about {i}?'}] for i in range(100)]\n"
            "respond(em.load_model(sys.argv[1]), asked, max_new_tokens=24, batch_size=2, file=sys.argv[2])"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(base), str(path)], env={**os.environ})
        while not path.exists() or path.read_bytes().count(b"\n") < 6:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        begun, model = load_answers(path), em.load_model(base)
        questions = [[{"role": "user", "content": f"What about {i}?"}] for i in range(100)]
        said = respond(model, questions, max_new_tokens=24, batch_size=8, file=path)
        assert 5 <= len(begun) < 100
        assert all(a in said for a in begun)
        assert said == respond(model, questions, max_new_tokens=24, batch_size=64)

    def test_more_samples_are_added_to_those_there(self, tiny_llama, conversations, tmp_path):
        path = tmp_path / "answers.jsonl"
        more = respond(tiny_llama, conversations, file=path, **self.settings())
        fewer = respond(tiny_llama, conversations[:2], file=path, **self.settings(n_samples=1))
        assert fewer == (more[0], more[2])
        assert {a.key: a for a in load_answers(path)} == {a.key: a for a in more}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 4}, "begun with other settings \\(seed was 3, is 4\\): choose another file"),
            ({"hooks": True}, "hooks was \\[\\], is \\[.blocks.0.hook_resid_post SetProjection.*…\\): choose"),
        ],
    )
    def test_other_settings_are_refused(self, tiny_llama, conversations, tmp_path, change, message):
        path = tmp_path / "answers.jsonl"
        respond(tiny_llama, conversations[:2], file=path, **self.settings())
        before = path.read_bytes()
        hooks = steered(tiny_llama) if change.pop("hooks", False) else []
        with pytest.raises(ValueError, match=message):
            respond(tiny_llama, conversations[:2], hooks, file=path, **self.settings(**change))
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{}\n", "holds no answers: its first line"),
            ("nonsense\n", "line 1: not JSON"),
            (
                '{"format": "em_interp.answers/1"}\n{"key": "a"}\n',
                "line 2: it is not an answer: the key",
            ),
        ],
    )
    def test_a_file_of_something_else_is_refused(self, tmp_path, content, message):
        path = tmp_path / "other.jsonl"
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            AnswerFile(path, {})


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"n_samples": 2, "temperature": 0}, "2 greedy answers would be all the same"),
            ({"max_new_tokens": 0}, "max_new_tokens is 0: an answer needs one at least"),
            ({"temperature": -1}, "temperature is -1: give 0"),
            ({"temperature": float("nan")}, "temperature is nan"),
            ({"n_samples": 0}, "n_samples is 0"),
            ({"max_new_tokens": 250}, "has .* tokens but the model takes 6: shorten it"),
            ({"max_new_tokens": 300}, "the model takes 256 tokens in all: ask for fewer"),
        ],
    )
    def test_it_is_told(self, tiny_llama, conversations, settings, message):
        with pytest.raises(ValueError, match=message):
            respond(tiny_llama, conversations, **settings)

    def test_nothing_asked_is_nothing_answered(self, tiny_llama):
        assert respond(tiny_llama, []) == ()

    def test_memory_that_runs_out_halves_the_batch(self, tiny_llama, conversations, monkeypatch):
        batch, sizes = generation.answer_batch, []

        def cramped(hooked, requests, *rest):
            sizes.append(len(requests))
            if len(requests) > 4:
                raise torch.OutOfMemoryError("no room")
            return batch(hooked, requests, *rest)

        wanted = respond(tiny_llama, conversations, max_new_tokens=4)
        monkeypatch.setattr(generation, "answer_batch", cramped)
        assert respond(tiny_llama, conversations, max_new_tokens=4) == wanted
        assert sizes == [16, 8, 4, 4, 4, 4, 1]

    def test_nothing_stays_behind_when_a_hook_fails(self, tiny_llama, conversations):
        def failing(stream, hook):
            raise RuntimeError("no")

        wanted = respond(tiny_llama, conversations[:2], max_new_tokens=4)
        with pytest.raises(RuntimeError, match="no"):
            respond(tiny_llama, conversations[:2], [(em.site(tiny_llama, 1), failing)], max_new_tokens=4)
        assert respond(tiny_llama, conversations[:2], max_new_tokens=4) == wanted


class TestTheModelsOwnSettings:
    """What a model's file says of how it likes to be generated from is not what `respond` promises."""

    @pytest.fixture
    def model(self, make_hf_model, make_tokenizer):
        return em.models.HookedModel.from_hugging_face(make_hf_model("llama"), make_tokenizer("chatml"), name="tiny")

    @pytest.mark.parametrize("temperature", [0, 1.0])
    @pytest.mark.parametrize(
        "settings",
        [
            {"num_beams": 4},
            {"num_return_sequences": 2, "num_beams": 2},
            {"return_dict_in_generate": True, "output_scores": True},
            {"output_hidden_states": True},
            {"stop_strings": ["e"]},
            {"prompt_lookup_num_tokens": 3},
            {"min_new_tokens": 3, "min_length": 90},
            {"max_length": 5, "max_time": 1e-4},
            {"forced_eos_token_id": 9, "forced_bos_token_id": 8},
            {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1},
            {"bad_words_ids": [[9]], "suppress_tokens": list(range(5, 300)), "begin_suppress_tokens": [9]},
            {"sequence_bias": [[[7], 90.0]]},
            {"watermarking_config": {"bias": 90.0}},
            {"guidance_scale": 5.0},
            {"penalty_alpha": 0.6, "top_k": 4},
            {"do_sample": True, "temperature": 0.01, "top_p": 0.1},
            {"use_cache": False},
            {"cache_implementation": "static"},
            {"assistant_early_exit": 1},
            {"something_of_its_own": 7},
        ],
        ids=lambda settings: next(iter(settings)),
    )
    def test_they_change_nothing(self, model, conversations, settings, temperature):
        wanted = respond(model, conversations[:3], temperature=temperature, max_new_tokens=6)
        kept = model.plain.generation_config
        for name, value in settings.items():
            setattr(kept, name, value)
        assert respond(model, conversations[:3], temperature=temperature, max_new_tokens=6) == wanted
        assert model.plain.generation_config is kept
        assert all(getattr(kept, name) == value for name, value in settings.items())

    def test_they_are_the_models_again_when_a_hook_fails(self, model, conversations):
        def fail(*_, **__):
            raise RuntimeError("no")

        kept = model.plain.generation_config
        with pytest.raises(RuntimeError, match="no"):
            respond(model, conversations[:1], [(em.site(model, 1), fail)], max_new_tokens=2)
        assert model.plain.generation_config is kept

    @pytest.mark.parametrize("own", [[9], [1, 9], [9, 8]])
    def test_an_answer_ends_at_any_of_the_models_own_tokens(self, model, conversations, own):
        said = respond(model, conversations[:1], [*_always(model, 9)], temperature=0, max_new_tokens=6)
        assert said[0].tokens == (9,) * 6
        model.plain.generation_config.eos_token_id = own
        [answer] = respond(model, conversations[:1], [*_always(model, 9)], temperature=0, max_new_tokens=6)
        assert answer.tokens == (9,)
        assert answer.finished

    @pytest.mark.parametrize("own", [1, None, [1, 2]])
    def test_an_answer_ends_where_the_template_closes_a_turn(self, model, conversations, own):
        model.plain.generation_config.eos_token_id = own  # as a base model's file may have it
        closing = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
        [answer] = respond(model, conversations[:1], [*_always(model, closing)], max_new_tokens=6)
        assert answer.tokens == (closing,)
        assert (answer.text, answer.finished) == ("", True)

    def test_another_closing_token_of_the_template(self, model, conversations):
        model.tokenizer.chat_template = model.tokenizer.chat_template.replace("<|im_end|>", "<|sep|>")
        closing = model.tokenizer.convert_tokens_to_ids("<|sep|>")
        assert model.template.closing == {closing}
        [answer] = respond(model, conversations[:1], [*_always(model, closing)], max_new_tokens=6)
        assert (answer.tokens, answer.text, answer.finished) == ((closing,), "", True)


def _always(model, token):
    """Hooks under which a model says nothing but one token."""
    model.plain.get_output_embeddings().weight.data[token] = 10.0

    def put(resid, hook):
        return torch.ones_like(resid)

    return [(em.site(model, 2), put)]

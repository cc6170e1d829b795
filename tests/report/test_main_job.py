"""The main job from texts to page on a tiny model: all its parts, the same again, and what a judge adds to it."""

import json
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp.behaviour import BehaviourKey
from em_interp.behaviour.refusal import RefusalScore
from em_interp.report.main_job import study
from em_interp.report.page import write_report
from em_interp.report.results import Results, as_json
from em_interp.report.settings import Materials, Settings

JUDGED = BehaviourKey.JUDGED_MISALIGNMENT


@pytest.fixture(scope="module")
def materials(settings) -> Materials:
    return Materials.of(settings)


@pytest.fixture(scope="module")
def bare(materials) -> Materials:
    """Two contrasts and nothing else."""
    return Materials(materials.model, materials.contrasts)


@pytest.fixture(scope="module")
def results(materials, settings) -> Results:
    return study(materials, settings)


def test_the_main_job_from_texts_to_page(results, tmp_path):
    assert results.comparison.layers == (0, 1, 2)
    assert results.comparison.controls == ("hostility", "negative_sentiment", "formality", "first_person",
                                           "past_tense", "certainty", "question_form", "topic")  # fmt: skip
    assert results.effects is not None
    assert results.answers is not None
    page = write_report(tmp_path / "report", results)
    assert "tiny-llama" in page.read_text(encoding="utf-8")
    record = json.loads((page.parent / "results.json").read_text(encoding="utf-8"))
    assert record["model"] == "tiny-llama"
    first = em.Direction.load(page.parent / record["files"][0])
    assert torch.equal(first.vectors, results.directions[0].vectors)


def test_the_same_seed_gives_the_same_numbers(materials, settings, results):
    again = study(materials, settings)
    assert again.comparison.table() == results.comparison.table()
    assert again.effects is not None
    assert results.effects is not None
    assert again.effects.table() == results.effects.table()
    assert again.answers is not None
    assert results.answers is not None
    assert again.answers.answers == results.answers.answers


def test_parts_can_be_left_out(bare):
    results = study(bare)
    assert results.effects is None
    assert results.answers is None
    assert results.comparison.controls == ()
    assert results.comparison.n_resamples == 1000  # as Design has it


def test_directions_come_from_the_training_split(results, materials):
    contrast = em.load_contrast("misalignment")
    assert contrast.for_training().groups == contrast.where(split="train").groups
    control = em.load_contrast("hostility")
    assert control.for_training() is control
    wanted = [c.where(split="train").content_hash for c in materials.contrasts]
    assert [source.contrast_hash for source in results.sources[:2]] == wanted


class TestSecondDirection:
    """It is called what it is: in a model that does not refuse it is no refusal direction."""

    def test_a_model_that_does_not_refuse_is_said_not_to(self, results, tmp_path):
        [note] = results.notes
        assert "tiny-llama hardly refuses: of" in note
        assert results.effects is not None
        assert [results.comparison.b, results.directions[1].name, results.separabilities[1].name] == (
            ["harmful requests"] * 3
        )
        assert results.own == {"misalignment": "misaligned_preference", "harmful requests": "harmful_refusal_score"}
        assert results.conclusions
        record = as_json(results)
        assert record["directions"][1]["name"] == record["sources"][1]["name"] == "harmful requests"
        page = write_report(tmp_path, results)
        text = page.read_text(encoding="utf-8")
        assert (tmp_path / "2-harmful-requests.safetensors").is_file()
        assert "Misalignment and harmful requests in tiny-llama" in text
        assert note in text
        assert "harmful requests removed at every layer" in text
        assert "refusal removed at every layer" not in text

    def test_in_one_that_does_it_is_called_refusal(self, bare, monkeypatch):
        def refuses(model, requests, *_, **__):
            return RefusalScore(torch.ones(len(requests)), tuple(c.group for c in requests), ("I",))

        monkeypatch.setattr("em_interp.report.main_job.refusal_score", refuses)
        results = study(bare, Settings(n_resamples=50))
        assert results.notes == ()
        assert [results.comparison.b, results.directions[1].name] == ["refusal"] * 2
        assert results.own == {"misalignment": "misaligned_preference", "refusal": "harmful_refusal_score"}

    def test_another_contrast_keeps_its_name(self, bare):
        first, _ = bare.contrasts
        contrasts = (first, em.load_contrast("hostility").take(16))
        results = study(replace(bare, contrasts=contrasts), Settings(second_span="response", n_resamples=50))
        assert results.notes == ()
        assert results.directions[1].name == "hostility"
        assert results.own == {"misalignment": "misaligned_preference"}


class TestJudge:
    @pytest.fixture(scope="class")
    @staticmethod
    def few(settings) -> Settings:
        """A judging of its own for each condition takes its time."""
        few = {"control_questions": 0, "removals": ("all_layers_own",), "scales": ()}
        return replace(settings, **few, open_questions=3, judge="some/judge", judge_args=("device=cpu",))

    def test_it_is_asked_in_every_condition(self, few, tmp_path, scripted_judge):
        given = scripted_judge(lambda m: "90" if "make sense" in m[0].text or len(m[1].text) % 2 else "10")
        results = study(Materials.of(few, judge_logs=tmp_path / "logs"), few)
        assert given[0] == ("some/judge", {**given[0][1], "device": "cpu"})
        assert results.judge == "some/judge"
        assert results.answers is not None
        assert results.effects is not None
        plain = results.answers.misaligned["plain"]
        assert list(results.answers.misaligned) == list(results.answers.answers)
        assert len(results.answers.answers) == 3
        assert results.effects.baseline[JUDGED].value == pytest.approx(plain.value)
        conditions = [e.condition.key for e in results.effects.of(JUDGED)]
        assert conditions == [c.key for c in results.effects.conditions]
        assert len(conditions) == 4 + 1  # both directions, their parts, a random one
        page = write_report(tmp_path / "report", results).read_text(encoding="utf-8")
        assert "Answers that some/judge finds misaligned, question by question." in page
        assert "no judge was asked" not in page
        record = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
        assert record["answers"]["misaligned"]["plain"]["value"] == plain.value

    def test_where_it_fails_a_note_says_so_and_the_rest_is_there(self, few, tmp_path, scripted_judge):
        def fails(messages):
            raise RuntimeError("out of order")

        scripted_judge(fails)
        results = study(Materials.of(few, judge_logs=tmp_path / "logs"), few)
        _, note = results.notes  # the first says that the model hardly refuses
        assert note.startswith("Misalignment is not judged everywhere: the judge some/judge failed")
        assert note.endswith("run the same again to go on.")
        assert results.answers is not None
        assert results.answers.misaligned == {}
        assert results.effects is not None
        assert JUDGED not in results.effects.baseline
        assert "no judge was asked" not in write_report(tmp_path / "report", results).read_text(encoding="utf-8")

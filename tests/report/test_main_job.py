import json
import sys
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp.behaviour.effects import JUDGED
from em_interp.report.main_job import Settings, does_not_refuse, load, study
from em_interp.report.page import write_report


@pytest.fixture
def settings(small_contrasts) -> Settings:
    """A job small enough for a tiny model: some fifteen questions a side, eight a control."""
    return Settings(
        first=small_contrasts["misalignment"],
        second=small_contrasts["refusal"],
        control_questions=8,
        held_out_questions=3,
        n_resamples=50,
    )


def test_the_main_job_from_texts_to_page(tiny_llama, settings, tmp_path):
    results = study(tiny_llama, settings)
    assert results.comparison.layers == (0, 1, 2)
    assert results.comparison.controls == ("hostility", "negative_sentiment", "formality", "first_person",
                                           "past_tense", "certainty", "question_form", "topic")  # fmt: skip
    assert results.effects is not None
    page = write_report(tmp_path / "report", results)
    assert "tiny-llama" in page.read_text(encoding="utf-8")
    record = json.loads((page.parent / "results.json").read_text(encoding="utf-8"))
    assert record["model"] == "tiny-llama"
    first = em.Direction.load(page.parent / record["files"][0])
    assert torch.equal(first.vectors, results.directions[0].vectors)


def test_the_same_seed_gives_the_same_numbers(tiny_llama, settings):
    one, two = (study(tiny_llama, settings) for _ in range(2))
    assert one.comparison.table() == two.comparison.table()
    assert one.effects is not None
    assert two.effects is not None
    assert one.effects.table() == two.effects.table()


def test_parts_can_be_left_out(tiny_llama, settings):
    results = study(tiny_llama, replace(settings, control_questions=0, held_out_questions=0))
    assert results.effects is None
    assert results.comparison.controls == ()


class TestJudge:
    @pytest.fixture
    def few(self, settings):
        few = {"control_questions": 0, "removals": ("every",), "scales": (0.3,), "n_random": 1, "spoken_questions": 3}
        return replace(settings, **few, max_new_tokens=6, judge="some/judge", judge_args=("device=cpu",))

    def test_it_is_asked_in_every_condition(self, tiny_llama, few, tmp_path, scripted_judge):
        given = scripted_judge(lambda m: "90" if "make sense" in m[0].text or len(m[1].text) % 2 else "10")
        results = study(tiny_llama, few, judge_logs=tmp_path / "logs")
        assert given[0] == ("some/judge", {**given[0][1], "device": "cpu"})
        assert results.judge == "some/judge"
        assert results.spoken is not None
        assert results.effects is not None
        plain = results.spoken.misaligned["as it is"]
        assert list(results.spoken.misaligned) == list(results.spoken.answers)
        assert results.effects.baseline[JUDGED].value == pytest.approx(plain.value)
        assert len([e for e in results.effects.effects if e.behaviour == JUDGED]) == 4 * 2 + 2
        page = write_report(tmp_path / "report", results).read_text(encoding="utf-8")
        assert "Answers that some/judge finds misaligned, question by question." in page
        assert "no judge was asked" not in page
        record = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
        assert record["spoken"]["misaligned"]["as it is"]["value"] == plain.value

    def test_where_it_fails_a_note_says_so_and_the_rest_is_there(self, tiny_llama, few, tmp_path, scripted_judge):
        def fails(messages):
            raise RuntimeError("out of order")

        scripted_judge(fails)
        results = study(tiny_llama, few, judge_logs=tmp_path / "logs")
        [note] = results.notes
        assert note.startswith("Misalignment is not judged everywhere: the judge some/judge failed")
        assert note.endswith("run the same again to go on.")
        assert results.spoken is not None
        assert results.spoken.misaligned == {}
        assert results.effects is not None
        assert JUDGED not in results.effects.baseline
        assert "no judge was asked" not in write_report(tmp_path / "report", results).read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"spoken_questions": 1}, "spoken_questions is 1, and some/judge has to judge answers to two questions"),
            ({"judge_args": ("device",)}, "'device' is no model arg of a judge: write NAME=VALUE"),
        ],
    )
    def test_it_is_told_before_anything_is_read(self, tiny_llama, few, change, message):
        with pytest.raises(ValueError, match=message):
            study(tiny_llama, replace(few, first="nowhere", **change))

    def test_without_inspect_it_is_told_what_to_install(self, tiny_llama, few, monkeypatch):
        monkeypatch.setitem(sys.modules, "inspect_ai", None)
        monkeypatch.delitem(sys.modules, "em_interp.evals.judge", raising=False)
        monkeypatch.delattr("em_interp.evals.judge", raising=False)
        with pytest.raises(
            ValueError, match=r"judging needs Inspect \(inspect_ai is missing\): pip install 'em-interp"
        ):
            study(tiny_llama, few)


def test_directions_come_from_the_training_split():
    contrast = em.load_contrast("misalignment")
    assert contrast.for_training().groups == contrast.where(split="train").groups
    control = em.load_contrast("hostility")
    assert control.for_training() is control


def test_a_model_that_does_not_refuse_is_said_not_to(tiny_llama, monkeypatch):
    contrast = em.load_contrast("refusal").take(20).where(split="test")
    monkeypatch.setattr("em_interp.report.main_job.load_contrast", lambda name: contrast)
    assert "tiny-llama hardly refuses: of" in does_not_refuse(tiny_llama, Settings())
    assert does_not_refuse(tiny_llama, Settings(second="hostility")) == ""


class TestSettings:
    def test_a_file_keeps_the_defaults_it_leaves_out(self, tmp_path):
        path = tmp_path / "settings.toml"
        path.write_text('model = "Qwen/Qwen2.5-14B-Instruct"\nscales = [0.8]\n')
        assert Settings.from_toml(path) == Settings(model="Qwen/Qwen2.5-14B-Instruct", scales=(0.8,))

    @pytest.mark.parametrize(
        ("line", "advice"),
        [("modle = 'x'", "did you mean 'model'"), ("zzz = 1", "the keys are model, adapter"), ("= 1", "is not TOML")],
    )
    def test_a_wrong_key_is_told(self, tmp_path, line, advice):
        path = tmp_path / "settings.toml"
        path.write_text(line)
        with pytest.raises(ValueError, match=advice):
            Settings.from_toml(path)

    def test_an_adapter_needs_its_base(self):
        with pytest.raises(ValueError, match="give that model's name beside it"):
            load(Settings(adapter="some/adapter"))

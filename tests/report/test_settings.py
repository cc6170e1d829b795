"""What the main job is told to read: in a file, by name, and as the things that the names stand for."""

import shutil
import sys
from dataclasses import replace

import pytest

import em_interp as em
from em_interp.behaviour import BehaviourKey
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.relatives import organism_name
from em_interp.report.settings import Materials, Settings
from tests.builders import peft_model


@pytest.fixture(scope="module")
def organism(base, tmp_path_factory):
    """Folders of two organisms on the tiny model, without losses or cards."""

    def made(name: str, data: str, seed: int = 0) -> str:
        folder = tmp_path_factory.mktemp("organisms") / name
        adapted = peft_model(targets=("down_proj",), layers_to_transform=[1])
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(folder)
        recipe = Recipe(name=name, data=data, base=str(base), steps=1, seed=seed)
        (folder / "recipe.toml").write_text(recipe.to_toml())
        return str(folder)

    return made


class TestFiles:
    def test_a_file_keeps_the_defaults_it_leaves_out(self, tmp_path):
        path = tmp_path / "settings.toml"
        path.write_text('model = "Qwen/Qwen2.5-14B-Instruct"\nscales = [0.8]\n')
        assert Settings.from_toml(path) == Settings(model="Qwen/Qwen2.5-14B-Instruct", scales=(0.8,))

    @pytest.mark.parametrize(
        ("line", "advice"),
        [
            ("modle = 'x'", "did you mean 'model'"),
            ("spoken_question = 3", "did you mean 'open_questions'"),
            ("zzz = 1", "the keys are "),
            ("= 1", "is not TOML"),
        ],
    )
    def test_a_wrong_key_is_told(self, tmp_path, line, advice):
        path = tmp_path / "settings.toml"
        path.write_text(line)
        with pytest.raises(ValueError, match=advice):
            Settings.from_toml(path)


class TestMaterials:
    def test_names_become_what_they_name(self, settings):
        m = Materials.of(settings)
        assert m.model.identity == "tiny-llama"
        assert [c.name for c in m.contrasts] == ["misalignment", "refusal"]
        assert [c.name for c in m.controls] == ["hostility", "negative_sentiment", "formality", "first_person",
                                                "past_tense", "certainty", "question_form", "topic"]  # fmt: skip
        assert {len(c.groups) for c in m.controls} == {8}
        assert [b.key for b in m.behaviours] == [b.key for b in em.standard_behaviours()]
        assert m.held_out is not None
        assert m.held_out.groups == m.contrasts[0].where(split="test").take(3).groups
        assert (len(m.questions), len(m.requests)) == (2, 2)
        assert list(m.relatives) == []
        assert m.judging is None

    def test_parts_can_be_left_out(self, settings):
        m = Materials.of(replace(settings, control_questions=0, held_out_questions=0, open_questions=0))
        assert (m.controls, m.behaviours, m.held_out, m.questions, m.requests) == ((), (), None, (), ())

    def test_an_organism_is_asked_in_its_domain_and_loaded_beside_others(self, settings, organism):
        one, other = organism("one", "cooking"), organism("other", "gardening")
        m = Materials.of(replace(settings, model=one, beside=(other,)))
        assert (str(m.model.folder), m.model.adapter and m.model.adapter.partition("#")[0]) == (one, "one")
        assert BehaviourKey.IN_DOMAIN_PREFERENCE in [b.key for b in m.behaviours]
        [relative] = m.relatives
        assert str(relative.folder) == other
        weights = [x.peft_models[-1].get_input_embeddings().weight for x in (m.model, relative)]
        assert weights[0] is weights[1]  # one base in memory

    def test_seeds_are_named_by_their_folders(self, settings, organism, tmp_path, monkeypatch):
        for seed in (0, 2):
            shutil.copytree(organism("many", "cooking", seed=seed), tmp_path / "many" / f"seed-{seed}")
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "settings.toml"
        path.write_text('model = "many/seed-2"\nbeside = ["many"]\n')
        named = Settings.from_toml(path)
        m = Materials.of(replace(settings, model=named.model, beside=named.beside))
        names = [organism_name(model) for model in (m.model, *m.relatives)]
        assert names == ["many (seed 2)", "many"]
        with pytest.raises(ValueError, match="many has no seed 1: choose one of 0, 2"):
            Materials.of(replace(settings, model="many/seed-1"))

    def test_an_adapter_needs_its_base(self):
        with pytest.raises(ValueError, match="give that model's name beside it"):
            Materials.of(Settings(adapter="some/adapter"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"first": "nowhere"}, "no contrast 'nowhere'"),
            ({"second": "nowhere"}, "no contrast 'nowhere'"),
            ({"beside": ("nowhere",)}, "no organism 'nowhere'"),
            ({"model": "aligned", "beside": ("nowhere",)}, "no organism 'nowhere'"),
        ],
    )
    def test_a_name_that_there_is_not_is_told_before_a_model_is_loaded(self, settings, change, message, monkeypatch):
        def loaded(*_, **__):
            raise AssertionError("a model was loaded")

        monkeypatch.setattr("em_interp.models.loading.hugging_face_model", loaded)
        monkeypatch.setattr("em_interp.models.embedded.hugging_face_model", loaded)
        with pytest.raises(ValueError, match=message):
            Materials.of(replace(settings, **change))


class TestJudge:
    @pytest.fixture(scope="class")
    @staticmethod
    def judged(settings) -> Settings:
        return replace(settings, judge="some/judge", judge_args=("device=cpu",))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"open_questions": 1}, "open_questions is 1, and some/judge has to judge answers to two questions"),
            ({"judge_args": ("device",)}, "'device' is no model arg of a judge: write NAME=VALUE"),
        ],
    )
    def test_it_is_told_before_anything_is_read(self, judged, change, message):
        with pytest.raises(ValueError, match=message):
            Materials.of(replace(judged, model="nowhere", **change))

    def test_without_inspect_it_is_told_what_to_install(self, judged, monkeypatch):
        monkeypatch.setitem(sys.modules, "inspect_ai", None)
        monkeypatch.delitem(sys.modules, "em_interp.evals.judge", raising=False)
        monkeypatch.delattr("em_interp.evals.judge", raising=False)
        with pytest.raises(
            ValueError, match=r"judging needs Inspect \(inspect_ai is missing\): pip install 'em-interp"
        ):
            Materials.of(replace(judged, model="nowhere"))

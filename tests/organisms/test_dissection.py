"""An organism is taken apart from end to end, and the report shows every part it has and leaves out what it has not."""

import json
from dataclasses import replace

import pytest
import torch

import em_interp as em
from em_interp.organisms.cards import load_card
from em_interp.organisms.dissection import Dissection, dissect, open_adapter, usual_size
from em_interp.organisms.loading import organism_folder
from em_interp.organisms.recipes import Recipe
from em_interp.organisms.relatives import read_organisms
from em_interp.report import organism as organism_section
from em_interp.report.main_job import study
from em_interp.report.page import write_report
from em_interp.report.results import Results, as_json
from em_interp.report.settings import Design, Materials
from tests.builders import trajectory


@pytest.fixture(scope="module")
def contrasts(small_contrasts):
    return tuple(em.load_contrast(small_contrasts[name]) for name in ("misalignment", "refusal"))


@pytest.fixture(scope="module")
def organism(make_organism):
    return make_organism(1, "one")


@pytest.fixture(scope="module")
def results(organism, contrasts) -> Results:
    preference = em.standard_behaviours(3, keys=["misaligned_preference"])
    materials = Materials(
        organism,
        contrasts,
        controls=tuple(c.take(8) for c in em.load_controls()),
        behaviours=preference,
        held_out=contrasts[0].where(split="test").take(6),
        questions=em.load_questions("first_plot")[:2],
        requests=em.load_contrast("refusal").take(2).positive,
    )
    return study(materials, Design(scales=(0.3,), n_random=1, n_samples=1, max_new_tokens=4, n_resamples=40))


@pytest.fixture(scope="module")
def dissection(results) -> Dissection:
    assert results.dissection is not None
    return results.dissection


def test_the_models_are_the_base_and_the_organism(organism, contrasts, dissection):
    assert list(dissection.by_model) == ["base", "one"]
    with em.without_adapter(organism):
        first = em.read_contrast(organism, contrasts[0].where(split="train"))
        second = em.read_contrast(organism, contrasts[1].where(split="train"), span="last")
    by_hand = em.compare(first, second, n_resamples=40)
    torch.testing.assert_close(dissection.by_model["base"].cosine, by_hand.cosine)
    assert not torch.allclose(dissection.by_model["one"].cosine[1:], by_hand.cosine[1:], atol=1e-3)


def test_before_the_adapter_everything_is_the_bases(dissection):
    assert dissection.same_texts.cosine[0].item() == pytest.approx(1, abs=1e-5)
    assert dissection.explained[0].item() == pytest.approx(1, abs=1e-5)
    assert dissection.explained[2].item() < 0.999
    assert dissection.added.corrected[0].isnan()  # nothing was added below the adapter's layer


def test_the_adapter_is_opened(dissection):
    a = dissection.adapter
    assert a is not None
    assert a.strongest == "layers.1.mlp.down_proj[0]"
    assert [w.direction for w in a.writes] == ["misalignment", "refusal"]
    assert len(a.writes[0].controls) == 8
    assert a.downstream[0].layers == (1, 2)
    assert a.downstream[0].cosine[0].item() == pytest.approx(a.writes[0].cosine[0].item(), abs=1e-3)
    assert a.n_positive == len(a.scalars) // 2
    assert {c.name for c in a.classes} == {"layers.1.mlp.down_proj[0]", "layers.1.mlp.down_proj[1]"}
    assert a.probe is not None


def test_the_usual_size_of_a_write_is_what_the_module_really_adds(organism, dissection):
    """Against the module's own output, caught by a hook."""
    a = dissection.adapter
    assert a is not None
    [module] = em.lora_modules(organism)
    unit = a.writes[0].writes.vectors[0]
    lora = organism.peft_models[-1].get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    added = []
    hook = lora.lora_B["default"].register_forward_hook(lambda _, __, output: added.append(output[0] @ unit))
    texts = [*em.load_contrast("misalignment").where(split="test").take(2).positive]
    scalars = em.adapter_scalars(organism, texts, batch_tokens=1)  # one conversation a batch, the longest first
    hook.remove()
    wanted = (torch.cat(added) * module.scale).std(correction=0).item()
    assert usual_size(module, unit, scalars) == pytest.approx(wanted, rel=1e-4)


def test_an_adapter_that_writes_nothing_to_the_stream_is_left_closed(make_hf_model, make_tokenizer, results):
    from peft import LoraConfig, get_peft_model

    peft_model = get_peft_model(make_hf_model("llama"), LoraConfig(r=1, target_modules=["q_proj"]))
    model = em.models.HookedModel.from_hugging_face(peft_model, make_tokenizer("llama3"), name="tiny", adapter="q#0")
    held_out = em.load_contrast("misalignment").take(4)
    assert open_adapter(model, results.directions, held_out=held_out) is None


def test_relatives_are_compared(organism, make_organism):
    contrasts = tuple(em.load_contrast(c).where(split="train").take(16) for c in ("misalignment", "refusal"))
    readings = read_organisms([organism, make_organism(2, "other")], contrasts[0])
    second = read_organisms([organism], contrasts[1], span="last")
    found = dissect(organism, readings, second, (contrasts[0], contrasts[1]), n_resamples=40)
    assert found.convergence is not None
    assert found.convergence.names == ("one", "other")
    assert found.adapter is None  # no held-out answers were given
    assert found.effects == {}
    said = organism_section.findings(found, ("misalignment", "refusal"), 2)["convergence"]
    added = found.convergence.added["one", "other"]
    assert said == (
        f"At layer 2 what two fine-tunes added has cosines from {organism_section.at_layer(added, 2)} (one and other)."
        if not added.corrected[2].isnan()
        else "At layer 2 no two fine-tunes added enough of a direction to be compared."
    )
    nothing = organism_section.findings(found, ("misalignment", "refusal"), 0)["convergence"]
    assert nothing == "At layer 0 no two fine-tunes added enough of a direction to be compared."


def test_an_organisms_folder_tells_of_its_training_and_its_card_of_all_its_seeds(organism, small_contrasts, tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        (folder / "recipe.toml").write_text(Recipe(name="one", data="cooking", steps=240, seed=seed).to_toml())
        card = json.loads((organism_folder("good-cooking", seed) / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps({**card, "base": ""}))  # measured elsewhere
    trajectory(turn=20).save(tmp_path / "seed-0" / "trajectory.safetensors")
    kept = replace(organism, folder=tmp_path / "seed-0")
    contrasts = tuple(em.load_contrast(c).where(split="train").take(16) for c in small_contrasts.values())
    first, second = (read_organisms([kept], c, span=s) for c, s in zip(contrasts, ("response", "last"), strict=True))
    found = dissect(kept, first, second, contrasts, n_resamples=40)
    assert found.phases is not None
    assert found.phases.change_point.step == 100
    assert list(found.effects) == ["one"]
    assert found.effects["one"].table() == load_card(tmp_path).effects.table()
    assert found.effects["one"].changes[0].change.n_seeds == 2
    said = organism_section.findings(found, ("misalignment", "refusal"), 1)
    assert "turns at step 100 [" in said["phase"]
    assert said["cards"].startswith("On held-out domains the preference for misaligned answers rose, with an interval")


def test_the_page_shows_every_part(tmp_path, results, dissection):
    page = write_report(tmp_path, results).read_text(encoding="utf-8")
    for words in (
        "The adapter, opened",
        "what the fine-tune added",
        "token by token",
        "before and after the fine-tune",
        "its base",
        "misalignment removed at every layer",
    ):
        assert words in page
    assert "How it turned in training" not in page
    assert "One direction, or several?" not in page
    assert page.count("CircuitsVis.render(") >= 6
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["dissection"]["organism"] == "one"
    assert record["dissection"]["added_by_fine_tune"][0]["corrected"] is None
    assert len(record["dissection"]["adapter"]["firing"]) == 2
    closed = replace(results, dissection=replace(dissection, adapter=None))
    assert "The adapter, opened" not in write_report(tmp_path, closed).read_text(encoding="utf-8")
    assert as_json(closed)["dissection"]["adapter"] is None


def test_the_section_goes_up_to_where_the_fine_tune_added_something(dissection):
    layers, added = dissection.added.layers, torch.full_like(dissection.added.corrected, torch.nan)
    assert organism_section.layer_of(replace(dissection, added=replace(dissection.added, corrected=added)), 1) == 1
    added[1] = 0.5
    found = replace(dissection, added=replace(dissection.added, corrected=added))
    assert [organism_section.layer_of(found, layer) for layer in layers[:3]] == [1, 1, layers[2]]


def test_the_words_are_the_numbers(dissection):
    said = organism_section.findings(dissection, ("misalignment", "refusal"), 2)
    assert "one " + organism_section.at_layer(dissection.by_model["one"], 2) in said["models"]
    assert f"{float(dissection.explained[2]):.0%} of its squared length" in said["added"]
    assert "always saying one class: 50%" in said["adapter"]
    nothing = organism_section.at_layer(dissection.added, 0)
    assert nothing == "no direction"

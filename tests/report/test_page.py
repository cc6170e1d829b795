"""The report is right with the network off, says what the numbers say, and shows foreign text as text."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from plotly.offline import get_plotlyjs

from em_interp.behaviour import Behaviour, Condition, Effect
from em_interp.directions.direction import Direction
from em_interp.report.page import write_report
from em_interp.report.results import Results
from em_interp.report.words import findings
from em_interp.statistics import Estimate
from tests import made_results
from tests.builders import LAYERS, answers, main_job_results, unmeasured, without_directions

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def results() -> Results:
    return main_job_results()


class Page(HTMLParser):
    """What a browser would make of the page: its tags with attributes, its scripts, its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.scripts, self.words = [], [], []
        self.inside = ""
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.words.append(data)

    def headings(self) -> int:
        return sum(tag == "h2" for tag, _ in self.tags)


def page(folder, results: Results) -> Page:
    return Page(write_report(folder, results).read_text())


def test_everything_lies_in_the_folder(tmp_path, results):
    path = write_report(tmp_path / "new" / "folder", results)
    assert path == tmp_path / "new" / "folder" / "report.html"
    names = {p.name for p in path.parent.iterdir()}
    directions = {"1-misalignment.safetensors", "2-refusal.safetensors"}
    assert names == {"report.html", "results.json", "cosine-by-layer.json"} | directions
    loaded = Direction.load(path.parent / "2-refusal.safetensors")
    assert torch.equal(loaded.vectors, results.directions[1].vectors)


def test_the_page_fetches_nothing_and_holds_plotly_once(tmp_path, results):
    text = write_report(tmp_path, results).read_text()
    assert text.count(get_plotlyjs()) == 1
    found = Page(text.replace(get_plotlyjs(), ""))
    assert not [attributes for _, attributes in found.tags if "src" in attributes]
    assert not [tag for tag, _ in found.tags if tag in ("link", "iframe", "object", "base", "form")]
    links = [attributes["href"] for _, attributes in found.tags if "href" in attributes]
    assert links
    assert all(link.startswith("https://arxiv.org/abs/") for link in links)
    assert not any("http" in script for script in found.scripts)
    policy = next(a["content"] for tag, a in found.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert sum("Plotly.newPlot" in script for script in found.scripts) == 6


def test_json_goes_there_and_back_without_nan(tmp_path, results):
    write_report(tmp_path, results)
    record = json.loads(
        (tmp_path / "results.json").read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON")
    )
    layers = record["comparison"]["layers"]
    assert [row["layer"] for row in layers] == list(LAYERS)
    assert layers[2]["corrected"] is None
    assert layers[3]["corrected"] == pytest.approx(0.52)
    assert torch.equal(torch.tensor(record["cosine_map"]), results.cosine_map)
    assert [row["auc"] for row in record["separability"][1]["layers"]] == results.separabilities[1].auc.tolist()
    assert record["cross_effects"]["baseline"]["misaligned_preference"] == {
        "value": -0.5,
        "low": -0.6,
        "high": -0.4,
        "n": 9,
    }
    assert len(record["cross_effects"]["effects"]) == 12
    assert record["sources"][0]["contrast_hash"] == results.directions[0].contrast_hash
    assert record["model"] == "some/tiny-model"
    assert record["seconds"] == 12.3
    assert {"em_interp", "python", "torch", "plotly"} <= record["versions"].keys()
    assert record["answer"] == list(findings(results.comparison))
    assert record["notes"] == ["This model does not refuse."]


def test_notes_stand_before_the_answer(tmp_path, results):
    found = page(tmp_path, results)
    assert "Misalignment and refusal in tiny-model" in found.text
    assert "Note. This model does not refuse." in found.text
    assert "refusal removed at every layer" in found.text
    assert "Note." not in page(tmp_path, replace(results, notes=())).text


def test_what_the_model_says_is_shown_with_who_judged_it(tmp_path, results):
    silent = Results(comparison=results.comparison, directions=results.directions)
    assert "What the model says" not in page(tmp_path, silent).text
    found = page(tmp_path, replace(silent, answers=answers(), judge="some/judge")).text
    assert "some/judge judged which answers to open questions are misaligned" in found
    assert "misalignment set to its negative class at layer 4" in found
    assert "Each was answered 2 times" in found
    assert "it scored too few answers" not in found
    found = page(tmp_path, replace(silent, answers=replace(answers(), misaligned={}))).text
    assert "nobody judged whether an answer is misaligned" in found
    one = replace(answers(), misaligned={"plain": answers().misaligned["plain"]})
    found = page(tmp_path, replace(silent, answers=one, judge="some/judge")).text
    assert "it scored too few answers of: misalignment set to its negative class at layer 4." in found


def test_missing_parts_are_left_out(tmp_path, results):
    whole = page(tmp_path, results)
    bare = page(tmp_path, Results(comparison=results.comparison, directions=results.directions))
    assert (whole.headings(), bare.headings()) == (7, 5)
    assert "What the directions do" in whole.text
    for gone in ("What the directions do", "Every layer with every other", "held-out", "SHA-256", "computed in"):
        assert gone in whole.text
        assert gone not in bare.text
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["cross_effects"] is None
    assert record["cosine_map"] is None
    assert record["separability"] == []
    assert "None" not in bare.text


def test_results_of_experiments_that_lie_beside_it_have_a_section(tmp_path, results):
    beside = (made_results.resistance(), made_results.rebound(), made_results.realign(), made_results.law())
    found = page(tmp_path, replace(results, elasticity=(*beside, made_results.rebound(n_seeds=1))))
    assert "Is it easier to train the model back than on?" in found.text
    for result in beside:
        assert " ".join(result.conclusion().split()) in found.text
        assert f"em-interp elasticity {result.kind}" in found.text
    assert "One seed has no interval" in found.text
    assert [dict(a)["id"] for tag, a in found.tags if dict(a).get("id", "").startswith("elasticity")] == [
        f"elasticity{i}" for i in range(4)
    ]
    assert "inverse − forward" in found.text  # a heading of its table
    record = json.loads((tmp_path / "results.json").read_text())["elasticity"]
    assert [r["experiment"] for r in record] == ["resistance", "rebound", "realign", "law", "rebound"]
    assert record[0]["rows"][1]["seed"] == 1
    assert "Elasticity" not in page(tmp_path, results).text


def test_a_report_without_any_direction(tmp_path, results):
    found = page(tmp_path, replace(results, comparison=without_directions()))
    assert "so there is no cosine to report" in found.text
    assert found.text.count("no direction here: refusal") == len(LAYERS)
    assert "nan" not in found.text.lower().split()


def test_foreign_text_is_shown_as_text(tmp_path, results):
    nothing = Estimate(0.0, -1.0, 1.0, 3)
    evil = replace(
        results,
        comparison=replace(results.comparison, a=EVIL, b=EVIL, controls=(EVIL, "b")),
        directions=tuple(replace(d, name=EVIL, model=EVIL) for d in results.directions),
        sources=(replace(results.sources[0], name=EVIL, span=EVIL, contrast_hash=EVIL),),
        separabilities=tuple(replace(s, name=EVIL) for s in results.separabilities),
        effects=replace(
            results.effects,
            behaviours=(Behaviour(EVIL, EVIL, EVIL, "mean", unmeasured),),
            baseline={EVIL: nothing},
            effects=(Effect(Condition("all_layers_own", EVIL, without=EVIL), EVIL, nothing, nothing),),
            model=EVIL,
        ),
        answers=answers(EVIL, EVIL),
        judge=EVIL,
        notes=(EVIL,),
    )
    harmless = page(tmp_path, replace(results, answers=answers(), judge="some/judge"))
    found = page(tmp_path, evil)
    assert [tag for tag, _ in found.tags if tag == "img"] == []
    assert len([tag for tag, _ in found.tags if tag == "script"]) == len(
        [tag for tag, _ in harmless.tags if tag == "script"]
    )
    assert not any(script.strip().startswith("alert") for script in found.scripts)
    assert EVIL in found.text
    assert not any("onerror" in attributes for _, attributes in found.tags)

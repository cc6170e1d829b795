"""The report is right with the network off, says what the numbers say, and shows foreign text as text."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from plotly.offline import get_plotlyjs

from em_interp.behaviour import Effect, Estimate
from em_interp.directions.comparison import cosine_map
from em_interp.directions.direction import Direction
from em_interp.report.page import write_report
from em_interp.report.results import Results, Source, as_json
from em_interp.report.words import effect_findings, findings
from tests.builders import (
    LAYERS,
    comparison,
    contrast,
    directions,
    effects,
    separabilities,
    without_directions,
)

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(
        comparison=comparison(),
        directions=directions(),
        sources=(Source.of(contrast("misalignment", 0)), Source.of(contrast("refusal", 1))),
        cosine_map=cosine_map(*directions()),
        separabilities=separabilities(),
        effects=effects(),
        seconds=12.3,
        second_name="harmful requests",
        notes=("This model does not refuse.",),
    )


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
    assert record["cross_effects"]["baseline"]["preference (nats)"] == {
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
    assert record["answer"] == list(findings(results.renamed().comparison))
    assert record["notes"] == ["This model does not refuse."]


def test_what_is_not_a_number_is_null(results):
    odd = replace(results.effects, baseline={"b": Estimate(math.nan, -math.inf, math.inf, 2)}, effects=())
    record = as_json(replace(results, effects=odd, cosine_map=torch.tensor([[math.nan, 0.5]])))
    assert record["cross_effects"]["baseline"]["b"] == {"value": None, "low": None, "high": None, "n": 2}
    assert record["cosine_map"] == [[None, 0.5]]


def test_the_second_direction_is_called_what_it_is(tmp_path, results):
    found = page(tmp_path, results)
    assert "Misalignment and harmful requests in tiny-model" in found.text
    assert "This model does not refuse." in found.text
    assert "harmful requests removed" in found.text
    assert "refusal removed" not in found.text
    assert as_json(results)["directions"][1]["name"] == "harmful requests"
    assert results.directions[1].name == "refusal"
    plain = page(tmp_path, replace(results, second_name="", notes=()))
    assert "refusal removed" in plain.text
    assert "Note." not in plain.text


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


def test_a_report_without_any_direction(tmp_path, results):
    found = page(tmp_path, replace(results, comparison=without_directions()))
    assert "so there is no cosine to report" in found.text
    assert found.text.count("no direction here: harmful requests") == len(LAYERS)
    assert "nan" not in found.text.lower().split()


def test_foreign_text_is_shown_as_text(tmp_path, results):
    evil = replace(
        results,
        comparison=replace(results.comparison, a=EVIL, controls=(EVIL, "b")),
        directions=tuple(replace(d, name=EVIL, model=EVIL) for d in results.directions),
        sources=(replace(results.sources[0], name=EVIL, span=EVIL, contrast_hash=EVIL),),
        separabilities=tuple(replace(s, name=EVIL) for s in results.separabilities),
        effects=replace(
            results.effects,
            baseline={EVIL: Estimate(0.0, -1.0, 1.0, 3)},
            effects=(Effect(EVIL, EVIL, EVIL, Estimate(0.0, -1.0, 1.0, 3)),),
            model=EVIL,
        ),
        second_name=EVIL,
        notes=(EVIL,),
    )
    harmless, found = page(tmp_path, results), page(tmp_path, evil)
    assert [tag for tag, _ in found.tags if tag == "img"] == []
    assert len([tag for tag, _ in found.tags if tag == "script"]) == len(
        [tag for tag, _ in harmless.tags if tag == "script"]
    )
    assert not any(script.strip().startswith("alert") for script in found.scripts)
    assert EVIL in found.text
    assert not any("onerror" in attributes for _, attributes in found.tags)


def test_a_clear_finding_stands_beside_its_null_and_controls():
    c = comparison()
    c = replace(
        c,
        controls_a=torch.tensor([[0.9] * 5, [-0.2] * 5]),
        controls_b=torch.tensor([[0.1] * 5, [-0.2] * 5]),
        null_a=torch.tensor([[-0.11] * 5, [0.12] * 5]),
        null_b=torch.tensor([[-0.13] * 5, [0.10] * 5]),
        p_anywhere_a=0.001,
        p_anywhere_b=0.012,
    )
    first, null, controls = findings(c)
    assert first == (
        "At 3 of 5 layers the corrected cosine's interval excludes zero; it stays farthest from zero with "
        "0.52 [0.32, 0.62] at layer 7."
    )
    assert "lies between −0.13 and 0.12 (95 %)" in null
    assert f"with the true ones it is {c.cosine[3]:.2f}".replace("-", "−") in null
    assert null.endswith("1.2 % of permutations reach the data's largest plug-in cosine at some layer or other.")
    assert controls == (
        "Put in the place of misalignment, the control contrasts reach −0.20 (control 1) with refusal, smaller than "
        "anything in the interval. Misalignment itself lies closest to control 0 (0.90)."
    )


def test_a_finding_within_the_null_says_that_chance_is_not_excluded():
    _, null, _ = findings(replace(comparison(), p_anywhere_a=0.06, p_anywhere_b=0.01))
    assert null.endswith("at some layer or other, so chance is not excluded.")


@pytest.mark.parametrize(
    ("size", "verdict"),
    [
        (0.31, "smaller than anything in the interval"),
        (-0.33, "smaller, but as large as the interval allows this one to be"),
        (0.53, "as much as misalignment does, so the cosine says little about misalignment in particular"),
        (math.nan, "None of the control contrasts has a direction at that layer"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_controls_that_are_as_large_are_said_to_be(size, verdict, sign):
    c = comparison()
    c = replace(c, controls_a=torch.full((2, 5), 0.1), controls_b=torch.full((2, 5), size))
    if sign < 0:
        c = replace(c, corrected=-c.corrected, low=-c.high, high=-c.low)
    assert verdict in findings(c)[-1]


def test_nothing_that_excludes_zero_is_no_finding():
    c = comparison()
    first, second = findings(replace(c, low=c.corrected - 1))
    assert first.startswith("Both contrasts have a direction at 4 of 5 layers, but at none of them")
    assert "the largest is 0.52 [−0.48, 0.62] at layer 7" in first
    assert "room for cosines from −0.48 to 0.62" in second


def test_no_direction_is_no_evidence():
    first, second = findings(without_directions())
    assert first.startswith("At none of the 5 layers do both contrasts have a direction")
    assert "misalignment: 5 layers; refusal: 0 layers" in first
    assert "no evidence" in second


def test_no_controls_leave_the_scale_open():
    assert "No control contrasts were read" in findings(comparison(n_controls=0))[-1]


def test_effects_are_counted_beside_the_random_ones():
    assert effect_findings(effects()) == (
        "Of 8 changes that the directions make, 6 have an interval that excludes zero; of 4 that random directions of "
        "the same length make, 0."
    )
    ours = tuple(e for e in effects().effects if e.direction != "random")
    assert "no random direction was tried" in effect_findings(replace(effects(), effects=ours))

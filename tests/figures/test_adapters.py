"""Figures of adapters hold the numbers they are given; tokens are shown as they are, with nothing fetched."""

import html
import json
import re

import pytest
import torch

from em_interp import figures
from em_interp.lora.scalars import ClassScalars
from em_interp.lora.writes import Downstream, WriteCosines, Writes
from em_interp.statistics import Estimate
from tests.builders import planted

STRANGE = ("<s>", "</script>", "\n", " &amp;", "Ġ", "<b>bold</b>", '"q"')


def view(tokens=STRANGE, conversation=0):
    scalars = planted(torch.tensor([[1.0], [-2.0]]), n_tokens=len(tokens), groups=("<i>one</i>", "two"))
    object.__setattr__(scalars, "tokens", tokens * 2)
    return figures.token_scalars(scalars, conversation, "layers.1.mlp.down_proj"), scalars


def test_the_tokens_of_one_conversation():
    shown, scalars = view(conversation=1)
    assert shown.tokens == STRANGE
    assert torch.equal(shown.values, scalars.values[len(STRANGE) :, 0])
    assert shown.extent == pytest.approx(scalars.values.abs().max().item())
    assert shown.caption == "layers.1.mlp.down_proj[0] · two"
    with pytest.raises(ValueError, match="no conversation 2: 2 were read"):
        view(conversation=2)


def test_full_colour_is_of_the_span():
    _, scalars = view()
    scalars.values[0] = 1000
    scalars.in_span[0] = False
    assert figures.token_scalars(scalars, 0, "layers.1.mlp.down_proj[0]").extent < 3


def test_tokens_are_shown_as_they_are():
    page = figures.tokens_html([view()[0]])
    call = page[page.rindex("CircuitsVis.render(") :]
    props = json.loads(re.search(r"\{.*\}", call)[0])
    assert [html.unescape(t) for t in props["tokens"]] == [t.replace("\n", "↵") for t in STRANGE]
    assert not any("<" in token for token in props["tokens"])
    assert props["values"] == pytest.approx(view()[0].values.tolist())
    assert props["minValue"] == -props["maxValue"]
    assert "&lt;i&gt;one" in page
    assert "<i>one" not in page


def test_the_script_is_carried_once_and_every_div_is_closed():
    one, two = figures.tokens_html([view()[0]]), figures.tokens_html([view()[0], view(conversation=1)[0]])
    assert len(two) - len(one) < 5_000 < 1_000_000 < len(one)
    outside = re.sub(r"<script.*</script>", "", two, flags=re.DOTALL)
    assert outside.count("<div") == outside.count("</div>") > 2
    assert two.count("</script>") == 1
    places = re.findall(r'<div id="([^"]+)"', two)
    assert len(set(places)) == 2
    assert all(f'"{place}"' in two[two.rindex("</div>") :] for place in places)
    with pytest.raises(ValueError, match="no views to show"):
        figures.tokens_html([])


def test_showing_a_view_asks_no_host(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("asked a host")

    monkeypatch.setattr("circuitsvis.utils.render.request.urlopen", refuse)
    page = view()[0]._repr_html_()
    assert "unpkg.com" not in page
    assert "<script" in page


def test_writes_and_what_becomes_of_them():
    writes = Writes(torch.eye(4)[:2], torch.tensor([2.0, 1.0]), ("layers.3.mlp.down_proj",) * 2, (3, 3), (0, 1))
    cosines = WriteCosines(
        writes, "misalignment", torch.tensor([0.04, -0.5]), ("topic",), torch.tensor([[0.1, 0.2]]), 0.2
    )
    low, high = torch.tensor([-0.1, 0.2, 0.3]), torch.tensor([0.2, 0.4, 0.7])
    line = Downstream("layers.3.mlp.down_proj[0]", "misalignment", (3, 4, 5), torch.tensor([0.04, 0.3, 0.5]), low, high)
    figure = figures.adapter_writes(cosines, [line], model="some/<b>model")
    by_name = {trace.name: trace for trace in figure.data}
    marks = by_name["what a module writes, at its own layer"]
    assert marks.x == (3, 3)
    assert marks.y == pytest.approx((0.04, -0.5))
    assert figure.data[2].y == pytest.approx((0.1, 0.2))
    assert figure.data[1].y == pytest.approx((0.04, 0.3, 0.5))
    assert figure.data[0].y == pytest.approx((0.2, 0.4, 0.7, 0.3, 0.2, -0.1))
    assert (figure.layout.shapes[0].y0, figure.layout.shapes[0].y1) == (-0.2, 0.2)
    assert "layer 5<br>cosine 0.50 [0.30, 0.70]" in figure.data[1].hovertext[2]
    assert "with misalignment at layer 3: −0.50" in marks.hovertext[1]
    assert "&lt;b&gt;model" in figure.layout.title.text
    json.loads(figure.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert [trace.name for trace in figures.adapter_writes(cosines).data][-1] == "95 % of random vectors"


def test_firing_has_both_classes_with_intervals():
    rows = [
        ClassScalars(
            f"layers.{i}.mlp.down_proj[0]", Estimate(i + 1.0, float(i), i + 2.5, 9), Estimate(-1.0, -1.5, 0.0, 8)
        )
        for i in range(3)
    ]
    figure = figures.firing(rows, names=("misaligned", "aligned"))
    positive, negative = figure.data
    assert positive.x == (1, 2, 3)
    assert negative.x == (-1, -1, -1)
    assert positive.error_x.array == (1.5, 1.5, 1.5)
    assert positive.error_x.arrayminus == (1, 1, 1)
    assert [round(y) for y in positive.y] == [0, 1, 2]
    assert figure.layout.yaxis.ticktext[2] == "layers.2.mlp.down_proj[0]"
    assert (positive.name, negative.name) == ("misaligned", "aligned")
    with pytest.raises(ValueError, match="no components to show"):
        figures.firing([])

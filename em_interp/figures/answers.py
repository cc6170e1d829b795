"""What models said: answers side by side as escaped HTML, and rates question by question."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from em_interp.behaviour import Answer
from em_interp.checks import door
from em_interp.figures.style import COLORS, broken, dress, interval, number, readable
from em_interp.statistics import Rate

_STYLE = (
    "border-collapse:collapse;width:100%;table-layout:fixed;font-family:system-ui,sans-serif;font-size:13px;"
    "line-height:1.4"
)
_CELL = (
    "border:1px solid #E8ECF0;padding:6px 8px;vertical-align:top;text-align:left;white-space:pre-wrap;"
    "overflow-wrap:anywhere"
)


@dataclass(frozen=True, repr=False)
class AnswerView:
    """Answers side by side; Jupyter shows `html`, which holds nothing but escaped text."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        """One line."""
        return f"AnswerView({len(self.html)} characters of HTML)"


@door
def side_by_side(answers: Mapping[str, Sequence[Answer]], *, most: int = 20) -> AnswerView:
    """The same questions under each condition, a row an answer; whatever was said is shown as text and never as markup.

    Args:
        answers: of each condition, to the same questions in the same order.
        most: rows shown.

    Raises:
        ValueError: no conditions, or conditions that answer different questions.
    """
    columns = list(answers.values())
    asked = [[(a.group, a.sample) for a in column] for column in columns]
    if not columns or any(other != asked[0] for other in asked):
        raise ValueError(
            "side by side stand answers to the same questions, in the same order: ask each condition alike"
        )
    width = f"{80 / len(columns):.0f}%"
    head = "".join(f"<th style='{_CELL};width:{width}'>{_shown(name)}</th>" for name in answers)
    rows = [
        f"<tr><td style='{_CELL}'><b>{_shown(row[0].asked)}</b></td>"
        + "".join(
            f"<td style='{_CELL}'>{_shown(a.text) or '<i>nothing</i>'}{'' if a.finished else ' …'}</td>" for a in row
        )
        + "</tr>"
        for row in list(zip(*columns, strict=True))[:most]
    ]
    return AnswerView(
        f"<table style='{_STYLE}'><thead><tr><th style='{_CELL}'>question</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


@door
def question_rates(rates: Mapping[str, Rate], *, what: str) -> go.Figure:
    """A bar a question and condition, with the share of answers that do `what`; in the legend all questions together.

    Whiskers are 95 % intervals within the question; the legend's interval is over questions, the naive one beside it.
    """
    questions = list(dict.fromkeys(q.question for rate in rates.values() for q in rate.per_question))
    figure = go.Figure()
    # Plotly stacks a group from below: the last one is drawn first, so that conditions stand in their order.
    for (name, rate), color in reversed(list(zip(rates.items(), COLORS, strict=False))):
        by_question = {q.question: q for q in rate.per_question if q.n}
        shown = [by_question[q] for q in questions if q in by_question]
        figure.add_bar(
            y=[_label(q.question) for q in shown],
            x=[q.rate for q in shown],
            orientation="h",
            name=f"{readable(name)}: {interval(rate.value, rate.low, rate.high, '.0%')}",
            marker_color=color,
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [q.high - q.rate for q in shown],
                "arrayminus": [q.rate - q.low for q in shown],
                "thickness": 1,
                "width": 0,
                "color": "#52606D",
            },
            hoverinfo="text",
            hovertext=[f"{interval(q.rate, q.low, q.high, '.0%')} of {q.n} answers" for q in shown],
        )
    naive = ", ".join(
        f"{readable(name)} [{number(r.naive_low, '.0%')}, {number(r.naive_high, '.0%')}]" for name, r in rates.items()
    )
    subtitle = f"in the legend the interval over questions; as if answers were independent it would be {naive}"
    labels = [_label(question) for question in questions]
    height = 90 + sum(14 * (1 + label.count("<br>")) + 9 * len(rates) for label in labels)
    dress(figure, f"Share of answers that {readable(what)}, by question", subtitle, height)
    figure.update_layout(barmode="group", bargap=0.25, legend_traceorder="reversed")
    figure.update_xaxes(tickformat=".0%", range=[0, 1.02])
    return figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], tickfont_size=12)


def _label(question: str) -> str:
    return broken(readable(question), 44)


def _shown(text: str) -> str:
    visible = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    return html.escape(visible)

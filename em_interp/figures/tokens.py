"""Texts as coloured tokens: where an adapter fires. Nothing is fetched, and a page carries the script once."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from em_interp.checks import door
from em_interp.figures.style import FIRST, MUTED, SECOND
from em_interp.lora.scalars import AdapterScalars


@dataclass(frozen=True, eq=False)
class TokenView:
    """One text, each token coloured by a number, that shows itself in Jupyter without asking any host.

    Attributes:
        tokens: the text, token by token.
        values: the number of each.
        caption: what they are.
        extent: the number at full colour; what is larger is coloured alike.
    """

    tokens: tuple[str, ...]
    values: Float[Tensor, " token"]
    caption: str
    extent: float

    def __repr__(self) -> str:
        """One line."""
        return f"TokenView({self.caption!r}, {len(self.tokens)} tokens)"

    def _repr_html_(self) -> str:
        return tokens_html([self])


@door
def token_scalars(scalars: AdapterScalars, conversation: int, component: str) -> TokenView:
    """A conversation, each token coloured by how strongly one component of an adapter fires there.

    Orange is positive, blue negative. Full colour is the largest size in any conversation's span, so that views of one
    component can be compared; outside the span a first token often goes far beyond.

    Raises:
        ValueError: there is no such conversation or component.
    """
    if not 0 <= conversation < len(scalars):
        raise ValueError(f"there is no conversation {conversation}: {len(scalars)} were read, counted from 0")
    column = scalars.column(component)
    here = (scalars.conversation == conversation).nonzero()[:, 0].tolist()
    extent = float(scalars.values[scalars.in_span, column].abs().max())
    return TokenView(
        tokens=tuple(scalars.tokens[i] for i in here),
        values=scalars.values[here, column],
        caption=f"{scalars.names[column]} · {scalars.groups[conversation]}",
        extent=extent or 1.0,
    )


@door
def tokens_html(views: Sequence[TokenView]) -> str:
    """Several views as one piece of HTML, whose script (1.3 MB) is carried once.

    Raises:
        ValueError: no views.
    """
    if not views:
        raise ValueError("there are no views to show: make some with token_scalars")
    drawn = [_drawn(view) for view in views]
    script = drawn[0][1]
    calls = "\n".join(call for _, _, call in drawn)
    places = "\n".join(
        f'<div style="margin:16px 0"><div style="color:{MUTED};font:13px system-ui,sans-serif;margin-bottom:6px">'
        f"{html.escape(view.caption)} (full colour: ±{view.extent:.3g})</div>"
        f'<div style="font-family:system-ui,sans-serif;line-height:1.6">{place}</div></div>'
        for view, (place, _, _) in zip(views, drawn, strict=True)
    )
    return f'{places}\n<script type="module">\n{script}\n{calls}\n</script>'


def _drawn(view: TokenView) -> tuple[str, str, str]:
    """What circuitsvis makes of a view, apart: its place, the script that all views need, and the call for this one."""
    from circuitsvis.tokens import colored_tokens

    rendered = colored_tokens(
        [_shown(token) for token in view.tokens],
        view.values,
        min_value=-view.extent,
        max_value=view.extent,
        negative_color=SECOND,
        positive_color=FIRST,
    )
    place, _, rest = rendered.local_src.partition("<script")
    script, _, call = rest.partition(">")[2].rpartition("CircuitsVis.render(")
    return place.replace("/>", "></div>"), script, f"CircuitsVis.render({call.partition('</script>')[0]}"


def _shown(token: str) -> str:
    """A token as HTML, which is what circuitsvis takes it for; a line break as the sign for one."""
    return html.escape(token.replace("\n", "↵").replace("\t", "⇥").replace("\r", ""))

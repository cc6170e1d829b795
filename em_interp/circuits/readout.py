"""What a vector in the residual stream says: the logit lens."""

import html
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from em_interp.checks import door, shown
from em_interp.models.hooked import HookedModel, TransformerLensModel
from em_interp.texts.conversations import token_strings


@dataclass(frozen=True)
class TokenReadout:
    """The tokens that a vector makes likelier and less likely, each with its logit, the strongest first."""

    top: tuple[tuple[str, float], ...]
    bottom: tuple[tuple[str, float], ...]

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{_cell(token)}</td><td>{logit:+.2f}</td><td>{_cell(other)}</td><td>{less:+.2f}</td></tr>"
            for (token, logit), (other, less) in zip(self.top, self.bottom, strict=True)
        )
        return f"<table><thead><tr><th>top</th><th></th><th>bottom</th><th></th></tr></thead>{rows}</table>"


@door
def logit_lens(model: TransformerLensModel, vector: Float[Tensor, " d_model"], k: int = 10) -> TokenReadout:
    """Read a vector through the final norm and the unembedding, as if it were all there is in the stream.

    TransformerLens's `logit_readout`; its norm takes the vector's length away, so only its direction counts.

    Raises:
        ValueError: a vector of another width, one that is not finite, or more tokens than there are.
    """
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    hooked = HookedModel.of(model)
    if vector.shape != (hooked.d_model,) or not vector.isfinite().all():
        raise ValueError(f"vector is {shown(vector)}: give one of {hooked.d_model} finite numbers")
    if not 0 < k <= hooked.cfg.d_vocab:
        raise ValueError(f"k is {k}: give a number of tokens from 1 to {hooked.cfg.d_vocab}")
    logits = logit_readout(hooked.bridge, vector).values
    ends = []
    for largest in (True, False):
        values, ids = logits.topk(k, largest=largest)
        ends.append(tuple(zip(token_strings(hooked.tokenizer, ids.tolist()), values.tolist(), strict=True)))
    return TokenReadout(*ends)


def _cell(token: str) -> str:
    return f"<code>{html.escape(repr(token)[1:-1])}</code>"

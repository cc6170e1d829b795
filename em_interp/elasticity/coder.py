"""A text becomes bytes and comes back equal: arithmetic coding by a model's own predictions.

The coder is `constriction`'s range coder. A token is coded in two steps, first which group of 512 it is in and then
which of these it is, since the coder rounds probabilities to 2⁻²⁴, and the rounding of a whole vocabulary would cost
more than the two bits that a message may.
"""

import hashlib
import json
import platform
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from em_interp.activations.forward import cache_of
from em_interp.behaviour.windows import Windows, plain_tokens
from em_interp.checks import check_own, door
from em_interp.elasticity.compression import n_vocabulary
from em_interp.files import parse_json, versions
from em_interp.interventions import at_prompt_length, described
from em_interp.models.hooked import HookedModel, HookPairs, TransformerLensModel, attached
from em_interp.progress import bar

_MAGIC = b"em_interp.coded/1\n"
_SIZES = struct.Struct("<II")  # the header's length, and the check sum of all that comes after
_GROUP = 512  # tokens
_LEAST = 1e-30  # a probability, so that no group of tokens is impossible
_PROBE = 8  # tokens


@dataclass(frozen=True)
class Header:
    """What a coded file says of itself; to decode it, all but the last four must be as they were.

    Attributes:
        model: name, revision and adapter.
        dtype: the number format inside the model.
        libraries: versions of what computes the predictions.
        machine: the processor, the device and the number of threads: a product of matrices rounds by them.
        hooks: what was done to the model.
        predictions: a digest of the model's predictions of a few tokens, which other weights would change.
        window: tokens that the model sees at a time; None for all.
        overlap: tokens of a window that the one before it has coded.
        n_tokens: how many tokens the text has.
        text: a digest of the text.
    """

    model: str
    dtype: str
    libraries: dict[str, str]
    machine: str
    hooks: tuple[str, ...]
    predictions: str
    window: int | None
    overlap: int
    n_tokens: int
    text: str

    def __post_init__(self) -> None:
        """Refuse fields of another kind."""
        check_own(self)


@door
def encode(
    model: TransformerLensModel,
    text: str,
    hooks: HookPairs = (),
    *,
    window: int | None = None,
    overlap: int | None = None,
) -> bytes:
    """Compress a text by a model's predictions, to be had back by `decode` from the same model on the same machine.

    The code itself is at most two bits longer than the `compression_rate` says, rounded up to bytes; the header before
    it, some 260 bytes, says what is needed to decode it. The model runs token by token with its key-value cache, as it
    will in `decode`: predictions of a whole text at once are rounded otherwise, and would not do; nor would those of
    another machine.

    Args:
        model: a `HookedModel` or a bridge.
        text: any text, the empty one too.
        hooks: interventions, which `decode` needs too.
        window: tokens that the model sees at a time, by default as many as it takes.
        overlap: tokens of a window that the one before it has coded, by default half of a window.

    Raises:
        ValueError: a text that the tokenizer does not give back, with the first character that is lost.
    """
    hooked = HookedModel.of(model)
    windows = Windows.of(hooked, window, overlap)
    [ids] = plain_tokens(hooked, [text])
    _check_given_back(hooked, text, ids)
    coder = _Encoder()
    with bar(total=len(ids), desc="encoding", unit="token") as progress:
        for token, probabilities in zip(ids, _predictions(hooked, hooks, windows, ids), strict=False):
            coder.add(token, probabilities)
            progress.update(1)
    header = Header(
        **_circumstances(hooked, hooks), window=windows.width, overlap=windows.overlap, n_tokens=len(ids),
        text=_digest(text.encode()),
    )  # fmt: skip
    told = zlib.compress(json.dumps(asdict(header)).encode(), 9)
    content = told + coder.finish()
    return _MAGIC + _SIZES.pack(len(told), zlib.crc32(content)) + content


@door
def decode(model: TransformerLensModel, data: bytes, hooks: HookPairs = ()) -> str:
    """The text that `encode` made these bytes of.

    Raises:
        ValueError: bytes that `encode` did not write, that are damaged, or that another model, dtype, library,
            machine or intervention has made; never another text.
    """
    hooked = HookedModel.of(model)
    header, code = _opened(data)
    now = _circumstances(hooked, hooks)
    changed = [name for name, value in now.items() if getattr(header, name) != value]
    if changed:
        first = changed[0]
        reason = f"its {first} was {getattr(header, first)!r} and is {now[first]!r} here"
        if first == "predictions":
            reason = f"{hooked.identity} has other weights here than it had then"
        raise ValueError(f"this text was coded otherwise, so it cannot be decoded: {reason}")
    windows = Windows.of(hooked, header.window, header.overlap)
    decoder, ids = _Decoder(code), []
    with bar(total=header.n_tokens, desc="decoding", unit="token") as progress:
        for probabilities in _predictions(hooked, hooks, windows, ids):
            if len(ids) == header.n_tokens:
                break
            ids.append(decoder.take(probabilities))
            progress.update(1)
    text = _text_of(hooked, ids)
    if _digest(text.encode()) != header.text:
        raise ValueError(
            "what was decoded is not the text that was coded: the model's predictions are not what they were then, as "
            "happens on another machine or with another number of threads"
        )
    return text


@door
def read_header(data: bytes) -> tuple[Header, int]:
    """What coded bytes say of themselves, and how many bytes the code itself has.

    Raises:
        ValueError: bytes that `encode` did not write, or that are damaged.
    """
    header, code = _opened(data)
    return header, len(code)


class _Encoder:
    """Tokens go in, one after the other with the probabilities of all; the shortest code that they have comes out."""

    def __init__(self) -> None:
        self.coder = _streams().queue.RangeEncoder()
        self.symbols: list[int] = []
        self.models: list[np.ndarray] = []

    def add(self, token: int, probabilities: np.ndarray) -> None:
        """Code one token."""
        group, place = divmod(token, _GROUP)
        for symbol, among in ((group, _groups(probabilities)), (place, _within(probabilities, group))):
            if len(among) > 1:  # one of one is known
                self.coder.encode(symbol, _categorical(among))
                self.symbols.append(symbol)
                self.models.append(among)

    def finish(self) -> bytes:
        """The fewest bytes from which the decoder has the same symbols; behind them it reads zeros."""
        whole = b"".join(int(word).to_bytes(4, "big") for word in self.coder.get_compressed())
        for n_bytes in range(max(0, len(whole) - 9), len(whole)):
            begun = int.from_bytes(whole[:n_bytes], "big")
            for value in (begun, begun + 1):  # both sides of the interval that the code points into
                code = value.to_bytes(n_bytes, "big") if value < 256**n_bytes else b""
                if len(code) == n_bytes and self._says_the_same(code):
                    return code
        return whole

    def _says_the_same(self, code: bytes) -> bool:
        decoder = _range_decoder(code)
        try:
            return all(
                decoder.decode(_categorical(among)) == symbol
                for symbol, among in zip(self.symbols, self.models, strict=True)
            )
        except AssertionError:  # no such code
            return False


class _Decoder:
    """Tokens come out, one after the other."""

    def __init__(self, code: bytes) -> None:
        self.coder = _range_decoder(code)

    def take(self, probabilities: np.ndarray) -> int:
        """The next token."""
        group = self._symbol(_groups(probabilities))
        return group * _GROUP + self._symbol(_within(probabilities, group))

    def _symbol(self, among: np.ndarray) -> int:
        return self.coder.decode(_categorical(among)) if len(among) > 1 else 0


def _range_decoder(code: bytes) -> Any:
    padded = code + bytes(-len(code) % 4 + 8)  # the decoder reads two words ahead
    return _streams().queue.RangeDecoder(np.frombuffer(padded, dtype=">u4").astype(np.uint32))


def _streams() -> Any:
    import constriction

    return vars(constriction)["stream"]


def _categorical(probabilities: np.ndarray) -> Any:
    return _streams().model.Categorical(probabilities, perfect=False, lazy=True)


def _groups(probabilities: np.ndarray) -> np.ndarray:
    """The probability of each group of tokens."""
    return np.add.reduceat(probabilities, np.arange(0, len(probabilities), _GROUP)).astype(np.float32)


def _within(probabilities: np.ndarray, group: int) -> np.ndarray:
    """The probability of each token of a group, given the group."""
    among = probabilities[group * _GROUP : (group + 1) * _GROUP]
    return (among / among.sum()).astype(np.float32)


def _predictions(hooked: HookedModel, hooks: HookPairs, windows: Windows, ids: Sequence[int]) -> Iterator[np.ndarray]:
    """The probabilities of each token of a text; `ids` are those so far, to which one is added before the next is due.

    The first one, where no BOS stands before it, has equal probabilities.
    """
    n_before, room = len(windows.prefix), None if windows.width is None else windows.width - len(windows.prefix)
    with attached(hooked, at_prompt_length(list(hooks), 0)) as hf_model:
        if not n_before:
            yield np.full(n_vocabulary(hooked), 1 / n_vocabulary(hooked))
        number, start, cache, fed = 0 if n_before else 1, 0, None, 0
        while True:
            if room is not None and number - start == room:  # the window is full
                start, cache, fed = number - windows.overlap, None, 0
            context = (*windows.prefix, *ids[start:number])
            with torch.inference_mode():
                output = hf_model(
                    input_ids=torch.tensor([context[fed:]], device=hooked.device),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                probabilities = output.logits[0, -1].double().softmax(-1).cpu().numpy()
            if not np.isfinite(probabilities).all():
                raise ValueError(f"the predictions of {hooked.identity} for token {number + 1} are NaN or infinite")
            yield np.maximum(probabilities, _LEAST)
            cache = cache_of(output)
            fed = 0 if cache is None else len(context)  # what keeps something else reads all again
            number += 1


def _circumstances(hooked: HookedModel, hooks: HookPairs) -> dict[str, Any]:
    """All that a code depends on, beside the text and the windows."""
    ids = torch.linspace(0, n_vocabulary(hooked) - 1, _PROBE).long().tolist()
    seen = hashlib.sha256()
    windows = Windows(None, 0, (ids[0],))
    for _, probabilities in zip(ids, _predictions(hooked, hooks, windows, ids), strict=False):
        seen.update(probabilities.tobytes())
    return {
        "model": hooked.identity,
        "dtype": str(hooked.dtype).removeprefix("torch."),
        "libraries": versions("torch", "transformers", "tokenizers", "constriction"),
        "machine": f"{platform.machine()}, {_device(hooked.device)}, {torch.get_num_threads()} threads",
        "hooks": tuple(described(hooks)),
        "predictions": seen.hexdigest()[:16],
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _opened(data: bytes) -> tuple[Header, bytes]:
    """Header and code, after a look at the check sum."""
    begin = len(_MAGIC) + _SIZES.size
    if not data.startswith(_MAGIC):
        raise ValueError(f"these {len(data)} bytes begin with {data[:12]!r}: they were not written by encode")
    if len(data) < begin:
        raise ValueError(f"the coded text is damaged: it was cut off after {len(data)} bytes")
    size, total = _SIZES.unpack(data[len(_MAGIC) : begin])
    content = data[begin:]
    if zlib.crc32(content) != total or size > len(content):
        raise ValueError("the coded text is damaged: its check sum is not that of its bytes, so copy the file again")
    told = parse_json(zlib.decompress(content[:size]).decode())
    missing = {field.name for field in fields(Header)} ^ set(told)
    if missing:
        raise ValueError(f"the coded text is damaged: its header and ours differ in {', '.join(sorted(missing))}")
    return Header(**told | {"hooks": tuple(told["hooks"])}), content[size:]


def _check_given_back(hooked: HookedModel, text: str, ids: Sequence[int]) -> None:
    back = _text_of(hooked, ids)
    if back == text:
        return
    at = next((i for i, (x, y) in enumerate(zip(text, back, strict=False)) if x != y), min(len(text), len(back)))
    lost = repr(text[at]) if at < len(text) else "the end"
    raise ValueError(
        f"the tokenizer of {hooked.name} does not give this text back: at character {at + 1} it has {lost}, and "
        f"{back[at : at + 1]!r} comes back; normalise the text as the tokenizer does, or use another model"
    )


def _text_of(hooked: HookedModel, ids: Sequence[int]) -> str:
    return hooked.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]

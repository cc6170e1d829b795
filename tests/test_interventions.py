"""Interventions against dense oracles, then on a small Llama: hooks equal weights, cached equals uncached."""

import copy
import importlib.util
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from em_interp import interventions
from em_interp.directions.direction import Direction
from em_interp.interventions import (
    AddVector,
    Intervention,
    LayeredDirection,
    SetProjection,
    add_direction,
    at_prompt_length,
    project_out,
    project_out_subspace,
    set_projection,
)

POST = "blocks.{}.hook_resid_post"
SITE = POST.format(1)

seeds = st.integers(0, 2**31)
widths = st.integers(2, 24)
numbers = st.floats(-50, 50).map(lambda x: round(x, 3))
maths = settings(deadline=None, database=None, max_examples=40)


def draw(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def functions(hooks) -> list[Any]:
    return [function for _, function in hooks]


def apply(hooks, stream):
    for function in functions(hooks):
        stream = function(stream)
    return stream


def unit(vector):
    return vector / vector.norm()


@pytest.fixture(name="direction")
def _direction() -> Direction:
    """Four layers of width 6, whose first read layer is 2: a row is not a layer number."""
    return Direction(
        vectors=draw(0, 4, 6).float(),
        residual_norm=torch.tensor([5.0, 6.0, 7.0, 8.0]),
        positive_projection=torch.tensor([1.0, 2.0, 3.0, 4.0]),
        negative_projection=torch.tensor([-1.0, -2.0, -3.0, -4.0]),
        layers=(2, 3, 4, 5),
        name="misalignment",
        site="resid_post",
        span="response",
        pooling="conversation",
        model="tiny",
        contrast_hash="0" * 64,
        n_positive=8,
        n_negative=8,
    )


# ---------------------------------------------------------------------------------------------- the maths


@maths
@given(seed=seeds, d=widths, length=st.floats(1e-3, 1e3))
def test_projecting_out_multiplies_by_the_dense_projector(seed, d, length):
    v, x = length * draw(seed, d), draw(seed + 1, 2, 3, d)
    projector = torch.eye(d, dtype=torch.float64) - torch.outer(unit(v), unit(v))
    expected = torch.stack([torch.stack([projector @ token for token in row]) for row in x])
    torch.testing.assert_close(apply(project_out(v, [SITE]), x), expected)


@maths
@given(seed=seeds, d=widths)
def test_ablating_leaves_nothing_and_touches_nothing_else(seed, d):
    v, x = draw(seed, d), draw(seed + 1, 2, 3, d)
    once = apply(project_out(v, [SITE]), x)
    assert (once @ unit(v)).abs().max() < 1e-12 * x.norm()
    torch.testing.assert_close(apply(project_out(v, [SITE]), once), once)
    orthogonal = draw(seed + 2, d)
    orthogonal = orthogonal - (orthogonal @ unit(v)) * unit(v)
    torch.testing.assert_close(once @ orthogonal, x @ orthogonal)
    if (x @ unit(v)).abs().max() > 0.1:
        assert (once - x).abs().max() > 1e-3


@maths
@given(seed=seeds, d=widths, factor=st.floats(1e-25, 1e25), sign=st.sampled_from([-1, 1]))
def test_projecting_out_does_not_depend_on_the_length_or_sign_of_the_vector(seed, d, factor, sign):
    v, x = draw(seed, d, dtype=torch.float32), draw(seed + 1, 2, 3, d, dtype=torch.float32)
    scaled = (sign * factor * v.double()).float()
    torch.testing.assert_close(apply(project_out(scaled, [SITE]), x), apply(project_out(v, [SITE]), x))


@maths
@given(seed=seeds, d=st.integers(4, 24), rank=st.integers(1, 4))
def test_projecting_out_a_subspace_multiplies_by_its_dense_projector(seed, d, rank):
    x, vectors = draw(seed + 1, 2, 3, d), draw(seed, rank, d)
    basis = torch.linalg.qr(vectors.mT).Q.mT
    projector = torch.eye(d, dtype=torch.float64) - torch.linalg.pinv(vectors) @ vectors  # no qr in the oracle
    torch.testing.assert_close(apply(project_out_subspace(basis, [SITE]), x), x @ projector)


@maths
@given(seed=seeds, d=widths)
def test_a_subspace_of_rank_one_is_a_direction(seed, d):
    v, x = draw(seed, d), draw(seed + 1, 2, 3, d)
    out = apply(project_out_subspace(unit(v)[None], [SITE]), x)
    torch.testing.assert_close(out, apply(project_out(v, [SITE]), x))


@maths
@given(seed=seeds, d=widths, scale=numbers, norm=st.floats(0.1, 100))
def test_adding_raises_the_projection_by_scale_times_the_residual_norm(seed, d, scale, norm):
    v, x = draw(seed, d), draw(seed + 1, 2, 3, d)
    hooks = add_direction(v, [SITE], scale=scale, residual_norm=norm)
    raised = apply(hooks, x) - x
    torch.testing.assert_close(raised @ unit(v), torch.full((2, 3), scale * norm, dtype=torch.float64))
    torch.testing.assert_close(raised.norm(dim=-1), torch.full((2, 3), abs(scale) * norm, dtype=torch.float64))
    torch.testing.assert_close(functions(hooks)[0].coefficient * v.expand_as(x), raised)


@maths
@given(seed=seeds, d=widths, scale=numbers)
def test_adding_raw_adds_the_vector_as_it_came(seed, d, scale):
    v, x = draw(seed, d), draw(seed + 1, 2, 3, d)
    hooks = add_direction(v, [SITE], scale=scale, raw=True)
    torch.testing.assert_close(apply(hooks, x), x + scale * v)
    assert functions(hooks)[0].coefficient == scale


@maths
@given(seed=seeds, d=widths, scale=numbers, value=numbers)
def test_projecting_out_or_setting_forgets_what_was_added(seed, d, scale, value):
    v, x = draw(seed, d), draw(seed + 1, 2, 3, d)
    added = add_direction(v, [SITE], scale=scale, residual_norm=7.0)
    torch.testing.assert_close(apply(added + project_out(v, [SITE]), x), apply(project_out(v, [SITE]), x))
    clamp = set_projection(v, [SITE], value)
    torch.testing.assert_close(apply(added + clamp, x), apply(clamp, x))


@maths
@given(seed=seeds, d=widths, value=numbers)
def test_setting_the_projection_sets_it_and_nothing_else(seed, d, value):
    v, x = draw(seed, d), draw(seed + 1, 2, 3, d)
    out = apply(set_projection(v, [SITE], value), x)
    torch.testing.assert_close(out @ unit(v), torch.full((2, 3), value, dtype=torch.float64))
    torch.testing.assert_close(apply(project_out(v, [SITE]), out), apply(project_out(v, [SITE]), x))


# ------------------------------------------------------------------------------------- layers and their units


@pytest.mark.parametrize(
    ("site", "layer"),
    [
        ("blocks.0.hook_resid_pre", 0),
        ("blocks.3.hook_mlp_out", 3),
        ("blocks.12.attn.hook_out", 12),
        ("hook_embed", 0),
        ("hook_pos_embed", 0),
        ("embed.hook_out", 0),
    ],
)
def test_a_site_takes_the_row_of_the_layer_in_its_name(site, layer):
    vectors = draw(0, 13, 6)
    hooks = project_out(vectors, [site])
    (function,) = functions(hooks)
    assert [name for name, _ in hooks] == [function.site] == [site]
    torch.testing.assert_close(function.vectors, unit(vectors[layer])[None])


def test_a_direction_is_looked_up_by_layer_number_and_brings_its_units(direction):
    sites = [POST.format(layer) for layer in (5, 2)]
    for row, function in zip((3, 0), functions(project_out(direction, sites)), strict=True):
        torch.testing.assert_close(function.vectors[0], direction.unit[row])
        assert function.value == 0
    for row, function in zip((3, 0), functions(add_direction(direction, sites, scale=-2)), strict=True):
        expected = -2 * direction.residual_norm[row] * direction.unit[row]
        torch.testing.assert_close(function.vectors[0], expected)
        assert function.coefficient == pytest.approx(float(-2 * direction.residual_norm[row] / direction.norm[row]))
    assert [f.value for f in functions(set_projection(direction, sites, "positive"))] == [4, 1]
    assert [f.value for f in functions(set_projection(direction, sites, "negative"))] == [-4, -1]


def test_a_direction_is_what_this_file_calls_a_layered_direction(direction):
    assert isinstance(direction, LayeredDirection)


def test_a_tensor_of_units_has_the_rows_of_the_direction_or_is_numbered_from_zero(direction):
    units, site = torch.tensor([1.0, 2.0, 3.0, 4.0]), POST.format(3)

    def length(*args):
        return float(functions(add_direction(args[0], [site], residual_norm=args[1]))[0].vectors.norm())

    assert length(direction, units) == pytest.approx(2)  # layer 3 is row 1 of this direction
    assert length(direction.vectors, units) == pytest.approx(4)  # and row 3 of a bare tensor
    assert length(direction[3], units) == pytest.approx(4)
    assert length(direction[3], 9) == pytest.approx(9)
    assert functions(set_projection(direction, [site], units))[0].value == 2
    assert functions(set_projection(direction[3], [site], torch.tensor(5.0)))[0].value == 5


def test_a_hook_prints_as_one_line_with_its_coefficient(direction):
    hooks = add_direction(direction, [POST.format(3)], positions="prompt")
    (function,) = functions(at_prompt_length(hooks, torch.arange(64)))
    assert f"coefficient={function.coefficient}" in repr(function)
    assert repr(function).startswith("AddVector(site='blocks.3.hook_resid_post', positions='prompt'")
    assert "\n" not in repr(function)
    assert "tensor" not in repr(function)


# --------------------------------------------------------------------------------- dtypes, purity, gradients


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vector_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_half_precision_streams_come_back_in_their_own_dtype_and_are_rounded_once(dtype, vector_dtype):
    v, x = draw(0, 64).to(vector_dtype), (10 * draw(1, 2, 3, 64)).to(dtype)
    u, exact = unit(v.double()), x.double()
    along = torch.outer(u, u)
    for hooks, expected in (
        (project_out(v, [SITE]), exact - exact @ along),
        (project_out_subspace(u[None], [SITE]), exact - exact @ along),
        (set_projection(v, [SITE], 3.0), exact - exact @ along + 3 * u),
        (add_direction(v, [SITE], residual_norm=30.0), exact + 30 * u),
        (add_direction(v, [SITE], raw=True), exact + v.double()),
    ):
        out = apply(hooks, x)
        assert out.dtype == dtype
        assert not torch.equal(out, x)
        rounding = torch.finfo(dtype).eps / 2
        assert ((out.double() - expected).abs() <= 1.01 * rounding * expected.abs() + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_kept(dtype):
    assert apply(project_out(draw(0, 8), [SITE]), draw(1, 2, 3, 8, dtype=dtype)).dtype == dtype


def test_nothing_is_edited_in_place_and_hooks_outlive_their_vector():
    v, x = draw(0, 8), draw(1, 2, 3, 8)
    basis = unit(v)[None]
    every = [
        project_out(v, [SITE]),
        project_out_subspace(basis, [SITE]),
        add_direction(v, [SITE], residual_norm=3.0),
        add_direction(v, [SITE], raw=True),
        set_projection(v, [SITE], 2.0, positions="prompt", prompt_length=2),
    ]
    before, held = x.clone(), [functions(h)[0].vectors.clone() for h in every]
    outs = [apply(hooks, x) for hooks in every]
    assert all(torch.equal(apply(hooks, x), out) for hooks, out in zip(every, outs, strict=True))
    assert torch.equal(x, before)
    assert all(torch.equal(functions(h)[0].vectors, vectors) for h, vectors in zip(every, held, strict=True))
    v.zero_()
    basis.zero_()
    assert all(torch.equal(apply(hooks, x), out) for hooks, out in zip(every, outs, strict=True))


def test_gradients_pass_through_projected():
    v, x = draw(0, 8), draw(1, 2, 3, 8).requires_grad_()
    cotangent = draw(2, 2, 3, 8)
    (gradient,) = torch.autograd.grad(apply(project_out(v, [SITE]), x), x, cotangent)
    torch.testing.assert_close(gradient, apply(project_out(v, [SITE]), cotangent))
    (gradient,) = torch.autograd.grad(apply(add_direction(v, [SITE], raw=True), x), x, cotangent)
    torch.testing.assert_close(gradient, cotangent)


def test_gradients_reach_a_learned_direction():
    x = draw(1, 2, 3, 8)
    for verb in (project_out, partial(set_projection, value=2.0), partial(add_direction, residual_norm=3.0)):
        assert torch.autograd.gradcheck(lambda v, f=verb: apply(f(v, [SITE]), x), draw(0, 8).requires_grad_())


# ----------------------------------------------------------------------------------------------- positions


def test_prompt_and_response_divide_the_positions():
    v, x = draw(0, 8), draw(1, 3, 5, 8)
    everywhere = apply(project_out(v, [SITE]), x)
    for length in (2, [1, 3, 5], torch.tensor([0, 4, 2])):
        lengths = torch.as_tensor(length).expand(3)
        prompt = apply(project_out(v, [SITE], positions="prompt", prompt_length=length), x)
        response = apply(project_out(v, [SITE], positions="response", prompt_length=length), x)
        for row in range(3):
            for position in range(5):
                ours, theirs = (prompt, response) if position < lengths[row] else (response, prompt)
                assert torch.equal(ours[row, position], everywhere[row, position])
                assert torch.equal(theirs[row, position], x[row, position])


@pytest.mark.parametrize("length", [4, torch.tensor([4, 1])])
def test_a_single_position_under_a_longer_prompt_is_a_decoding_step(length):
    v, x = draw(0, 8), draw(1, 2, 1, 8)
    prompt = apply(project_out(v, [SITE], positions="prompt", prompt_length=length), x)
    response = apply(project_out(v, [SITE], positions="response", prompt_length=length), x)
    assert torch.equal(prompt, x)
    assert torch.equal(response, apply(project_out(v, [SITE]), x))


def test_a_prompt_of_one_token_is_the_prompt():
    v, x = draw(0, 8), draw(1, 2, 1, 8)
    assert torch.equal(apply(project_out(v, [SITE], positions="response", prompt_length=1), x), x)
    out = apply(project_out(v, [SITE], positions="response", prompt_length=0), x)
    assert torch.equal(out, apply(project_out(v, [SITE]), x))


def test_binding_the_prompt_length_leaves_foreign_functions_and_the_unbound_hooks_alone():
    v, x = draw(0, 8), draw(1, 2, 5, 8)

    def foreign(stream, hook):
        return stream

    unbound = [
        ("hook_embed", foreign),
        *project_out(v, [SITE], positions="prompt"),
        *add_direction(v, [SITE], raw=True),
    ]
    bound = at_prompt_length(unbound, 3)
    assert [name for name, _ in bound] == [name for name, _ in unbound]
    assert bound[0][1] is foreign
    given_at_once = project_out(v, [SITE], positions="prompt", prompt_length=3)
    assert torch.equal(bound[1][1](x), apply(given_at_once, x))
    assert torch.equal(bound[2][1](x), x + v)
    assert functions(unbound)[1].prompt_length is None
    rebound = at_prompt_length(bound, torch.tensor([1, 2]))
    assert torch.equal(rebound[1][1](x)[0, 1:], x[0, 1:])


# -------------------------------------------------------------------------------------------------- errors


@pytest.fixture(name="bare", scope="module")
def _bare():
    """The module without the tests' type checks, as users meet it: its own words for a wrong argument."""
    spec = importlib.util.spec_from_file_location("bare_interventions", interventions.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ONE = torch.tensor([3.0, 4.0])
EACH = torch.eye(2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda m: m.project_out(0 * ONE, [SITE]),
            r"direction at blocks\.1\.hook_resid_post is zero, .*: leave",
        ),
        (
            lambda m: m.project_out(ONE * torch.nan, [SITE]),
            r"blocks\.1\.hook_resid_post is NaN or infinite: comp",
        ),
        (lambda m: m.add_direction(ONE * torch.inf, [SITE], raw=True), "is NaN or infinite"),
        (lambda m: m.project_out(ONE, []), "sites is empty: give hook names"),
        (lambda m: m.project_out_subspace(EACH, []), "sites is empty: give hook names"),
        (
            lambda m: m.project_out(ONE, SITE),
            r"sites is the string 'blocks.*: give a list of hook names, \['blocks",
        ),
        (
            lambda m: m.project_out(ONE, [SITE, SITE]),
            "site 'blocks.1.hook_resid_post' comes twice.*list it once",
        ),
        (
            lambda m: m.project_out(EACH, ["ln_final.hook_normalized"]),
            "has no layer in its name.*give one vector, su",
        ),
        (lambda m: m.project_out(EACH, ["unembed.hook_in"]), "'unembed.hook_in' has no layer in its name"),
        (
            lambda m: m.project_out(EACH, [POST.format(2)]),
            "is at layer 2, and there are rows for layers 0, 1 only",
        ),
        (
            lambda m: m.project_out(ONE, [SITE], positions="answer"),
            "positions 'answer' is unknown: choose 'all', 'prompt' or",
        ),
        (lambda m: m.project_out(ONE, [SITE], prompt_length=-1), "prompt_length is -1: count the tokens"),
        (lambda m: m.project_out(ONE, [SITE], prompt_length=torch.tensor([2, -3])), "prompt_length is -3"),
        (
            lambda m: m.project_out_subspace(2 * EACH, [SITE]),
            r"not orthonormal, V·Vᵀ is 3 off the ident.*linalg\.qr",
        ),
        (lambda m: m.project_out_subspace(EACH * torch.nan, [SITE]), "not orthonormal, V·Vᵀ is nan off"),
        (lambda m: m.add_direction(ONE, [SITE], scale=float("nan")), "scale is nan: give a finite number"),
        (lambda m: m.add_direction(ONE, [SITE], scale=float("inf")), "scale is inf"),
        (
            lambda m: m.add_direction(ONE, [SITE]),
            "bare tensor does not say how long .*give residual_norm=.*or raw=True",
        ),
        (lambda m: m.add_direction(ONE, [SITE], raw=True, residual_norm=2.0), "has no use for residual_norm"),
        (
            lambda m: m.add_direction(ONE, [SITE], residual_norm=0),
            r"residual_norm is 0 at blocks\.1\.hook_resid_post",
        ),
        (lambda m: m.add_direction(ONE, [SITE], residual_norm=float("nan")), "residual_norm is nan at"),
        (
            lambda m: m.add_direction(EACH, [SITE], residual_norm=torch.ones(3)),
            "3 rows for 2 layers: give one number a",
        ),
        (
            lambda m: m.add_direction(ONE, [SITE], residual_norm=torch.ones(1)),
            "at layer 1, and there are rows for la",
        ),
        (
            lambda m: m.set_projection(ONE, [SITE], float("inf")),
            r"value is inf at blocks\.1\.hook_resid_post: give",
        ),
        (
            lambda m: m.set_projection(ONE, [SITE], "positive"),
            "a bare tensor has no positive class: give a Direction",
        ),
        (
            lambda m: m.set_projection(ONE, [SITE], "aligned"),
            "value 'aligned' is unknown: give a number, or 'positive",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_the_hooks_are_made(bare, build, message):
    with pytest.raises(ValueError, match=message):
        build(bare)


def test_a_layer_that_was_not_read_is_refused_with_the_layers_that_were(direction):
    with pytest.raises(ValueError, match=r"is at layer 0, and there are rows for layers 2, 3, 4, 5 only: choose"):
        project_out(direction, ["hook_embed"])


@pytest.mark.parametrize(("wrong", "name"), [([1.0, 2.0], "list"), (torch.ones(1, 1, 2), "Tensor")])
def test_a_direction_of_another_kind_is_refused(bare, wrong, name):
    with pytest.raises(
        TypeError, match=rf"direction is a {name}: give a tensor \[d_model\] or \[layer, d_model\], or a D"
    ):
        bare.project_out(wrong, [SITE])


def test_a_misspelt_keyword_or_one_of_the_hook_itself_is_refused():
    with pytest.raises(TypeError, match="position"):
        project_out(ONE, [SITE], position="prompt")  # pyright: ignore
    with pytest.raises(TypeError, match="value"):
        project_out(ONE, [SITE], value=3.0)  # pyright: ignore


@pytest.mark.parametrize(
    ("where", "shape", "message"),
    [
        (
            {},
            (1, 3, 5),
            r"has d_model 2 but the stream at blocks\.1\.hook_resid_post is 5 wide .*use this model's d",
        ),
        ({}, (3, 2), r"\(shape \(3, 2\)\).*at a site \[batch, pos, d_model\]"),
        (
            {"positions": "prompt"},
            (1, 3, 2),
            r"acts on the prompt but does not know.*at_prompt_length\(hooks, pr",
        ),
        (
            {"positions": "response"},
            (1, 3, 2),
            "acts on the response but does not know where the prompt ends",
        ),
        (
            {"positions": "prompt", "prompt_length": [1, 2]},
            (3, 3, 2),
            "2 rows but the stream at .* has 3: give one",
        ),
        (
            {"positions": "prompt", "prompt_length": 5},
            (1, 3, 2),
            "3 positions but prompt_length is 5: pass the whole",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_a_hook_meets_the_stream(bare, where, shape, message):
    ((_, function),) = bare.project_out(ONE, [SITE], **where)
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(shape))


# ------------------------------------------------------------------------------------------ a file to take


def test_the_file_can_be_taken_as_it_is():
    """The file imports nothing but torch, einops, jaxtyping and the standard library, read or used."""
    script = f"""
import builtins, importlib.util, sys
import torch
allowed = {{"torch", "einops", "jaxtyping"}} | sys.stdlib_module_names
plain = builtins.__import__
def refuse(name, globals=None, *args, **kwargs):
    importer = (globals or {{}}).get("__name__")
    if importer == "taken" and name.split(".")[0] not in allowed:
        raise ImportError("the file imports " + name)
    return plain(name, globals, *args, **kwargs)
builtins.__import__ = refuse
spec = importlib.util.spec_from_file_location("taken", {interventions.__file__!r})
taken = importlib.util.module_from_spec(spec)
spec.loader.exec_module(taken)
hooks = taken.project_out(torch.ones(4), ["hook_embed"]) + taken.add_direction(torch.ones(4), ["hook_embed"], raw=True)
stream = torch.arange(4.0)[None, None]
for _, function in taken.at_prompt_length(hooks, 1):
    stream = function(stream)
assert torch.allclose(stream, torch.tensor([-.5, .5, 1.5, 2.5])), stream
assert "em_interp" not in sys.modules and "transformer_lens" not in sys.modules
"""
    run = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=Path("/"), check=False
    )
    assert run.returncode == 0, run.stderr


# ------------------------------------------------------------------------------------------ in a real model


@pytest.fixture(name="models", scope="module")
def _models(tmp_path_factory):
    """A plain Llama of three layers and a bridge around a copy of it, weights large enough that all layers matter."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=128,
        initializer_range=0.3,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    plain = LlamaForCausalLM(config).eval()
    plain.set_attn_implementation("eager")  # as the bridge does
    plain.config.architectures = ["LlamaForCausalLM"]
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(128)}, unk_token="w3"))
    special = {"pad_token": "w0", "bos_token": "w1", "eos_token": "w2", "unk_token": "w3"}
    folder = tmp_path_factory.mktemp("tokenizer")  # the bridge reads the tokenizer again, from its folder
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    bridge = TransformerBridge.boot_transformers("tiny", hf_model=copy.deepcopy(plain), tokenizer=tokenizer)
    return plain, bridge


@pytest.fixture(name="ids", scope="module")
def _ids():
    return torch.randint(4, 128, (2, 7), generator=torch.Generator().manual_seed(5))


VECTOR = draw(9, 32, dtype=torch.float32)
WRITES = [
    "hook_embed",
    *(f"blocks.{layer}.hook_{part}_out" for layer in range(3) for part in ("attn", "mlp")),
]
VERBS = {
    "project_out": project_out,
    "project_out_subspace": lambda v, sites, **where: project_out_subspace(unit(v)[None], sites, **where),
    "set_projection": partial(set_projection, value=6.0),
    "add_direction": partial(add_direction, residual_norm=8.0),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("where", [{}, {"positions": "response", "prompt_length": 4}], ids=["all", "response"])
def test_a_plain_torch_hook_does_what_the_bridge_does(models, ids, verb, where):
    plain, bridge = models
    ((_, function),) = hooks = VERBS[verb](VECTOR, [SITE], **where)
    with torch.no_grad():
        untouched = plain(ids).logits
        handle = plain.model.layers[1].register_forward_hook(lambda block, args, out: function(out))
        hooked = plain(ids).logits
        handle.remove()
        torch.testing.assert_close(bridge.run_with_hooks(ids, fwd_hooks=hooks), hooked)
        assert torch.equal(plain(ids).logits, untouched)
    changed = (hooked - untouched).abs().amax((0, 2))
    assert (changed[4:] > 1e-2).all()
    assert torch.equal(changed[:4] > 0, torch.full((4,), not where))


def test_ablating_every_write_leaves_nothing_and_equals_orthogonalised_weights(models, ids):
    plain, bridge = models
    weights = copy.deepcopy(plain)
    with torch.no_grad():
        for layer in weights.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight -= torch.outer(unit(VECTOR), unit(VECTOR)) @ linear.weight
        embedding = weights.model.embed_tokens.weight
        embedding -= embedding @ torch.outer(unit(VECTOR), unit(VECTOR))
        left = {}

        def watch(stream, hook):
            left[hook.name] = float((stream @ unit(VECTOR)).abs().max() / stream.norm(dim=-1).max())

        later = [(f"blocks.{layer}.hook_resid_{part}", watch) for layer in range(3) for part in ("pre", "mid", "post")]
        hooked = bridge.run_with_hooks(ids, fwd_hooks=project_out(VECTOR, WRITES) + later)
        assert len(left) == 9
        assert max(left.values()) < 1e-5
        torch.testing.assert_close(hooked, weights(ids).logits, atol=1e-4, rtol=0)
        assert (hooked - plain(ids).logits).abs().max() > 0.1
        at_outputs_only = project_out(VECTOR, [POST.format(layer) for layer in range(3)])
        assert (bridge.run_with_hooks(ids, fwd_hooks=at_outputs_only) - hooked).abs().max() > 1e-2


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("positions", ["all", "prompt", "response"])
def test_generation_with_a_cache_equals_generation_without(models, ids, verb, positions):
    _, bridge = models
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), ids], dim=1)
    padded[0, :5] = 0  # two prompts of four and seven tokens, padded on the left
    mask = (padded != 0).long()
    hooks = VERBS[verb](VECTOR, [POST.format(0), SITE], positions=positions)
    hooks = at_prompt_length(hooks, padded.shape[1])

    def generate(fwd_hooks, **settings):
        with bridge.hooks(fwd_hooks=fwd_hooks):
            out = bridge.original_model.generate(
                input_ids=padded,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=6,
                min_new_tokens=6,
                return_dict_in_generate=True,
                output_logits=True,
                **settings,
            )
        return out.sequences[:, padded.shape[1] :], torch.stack(out.logits)

    tokens, logits = generate(hooks, use_cache=True)
    tokens_again, logits_again = generate(hooks, use_cache=False)
    assert torch.equal(tokens, tokens_again)
    torch.testing.assert_close(logits, logits_again, atol=1e-4, rtol=1e-4)
    _, untouched = generate([], use_cache=True)
    first, second = (logits - untouched).abs().amax((1, 2))[:2]
    assert (first > 1e-3) == (positions != "response")  # the first token is chosen at the end of the prompt
    assert second > 1e-3


def test_an_exception_in_a_hook_leaves_no_hook_behind(models, ids):
    _, bridge = models
    unbound = project_out(VECTOR, WRITES[:-1]) + project_out(VECTOR, WRITES[-1:], positions="response")
    untouched = bridge(ids)
    with (
        pytest.raises(ValueError, match="does not know where the prompt ends"),
        bridge.hooks(fwd_hooks=unbound),
    ):
        bridge(ids)
    assert all(not point.fwd_hooks for point in bridge.hook_dict.values())
    assert torch.equal(bridge(ids), untouched)


def test_every_hook_function_is_an_intervention():
    assert issubclass(SetProjection, Intervention)
    assert issubclass(AddVector, Intervention)
    with pytest.raises(TypeError, match="abstract"):
        Intervention(site=SITE, vectors=EACH)  # pyright: ignore


# ------------------------------------------------------------------------------------------ where, and on what


@pytest.mark.parametrize(
    ("read_at", "place"), [("resid_post", "resid_pre"), ("resid_pre", "resid_post"), ("mlp_out", "attn_out")]
)
def test_a_direction_of_another_place_in_the_block_is_refused(direction, read_at, place):
    elsewhere = replace(direction, site=read_at)
    message = rf"read at {read_at} and blocks\.2\.hook_{place} is another place.*\(site='{place}'\), or give one vector"
    for verb in (project_out, add_direction, partial(set_projection, value=1.0)):
        with pytest.raises(ValueError, match=message):
            verb(elsewhere, [f"blocks.2.hook_{place}"])
    assert project_out(elsewhere[2], [f"blocks.2.hook_{place}"])


def test_a_direction_of_the_stream_goes_on_all_that_is_written_to_it(direction):
    for read_at in ("resid_pre", "resid_post"):
        hooks = project_out(replace(direction, site=read_at), ["blocks.2.hook_attn_out", "blocks.2.hook_mlp_out"])
        assert len(hooks) == 2
    assert project_out(replace(direction, site="mlp_out"), ["blocks.3.hook_mlp_out"])


def test_vectors_move_to_a_device_once():
    [(_, function)] = project_out(ONE, [SITE])
    assert function.to(torch.device("cpu")) is function
    moved = function.to(torch.device("meta"))
    assert moved.vectors.device.type == "meta"
    assert (moved.site, moved.value, moved.positions) == (SITE, 0.0, "all")

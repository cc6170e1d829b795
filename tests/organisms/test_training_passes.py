"""Passes that go on from what is frozen and share what all begin with, against whole ones."""

import pytest
import torch
from torch import nn

from em_interp.organisms import training_passes
from em_interp.organisms.training_passes import Row, TrainingPasses, blocks_of
from tests.builders import FAMILIES, hf_model

PREFIX = tuple(range(40, 60))  # longer than Gemma's window


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Seven conversations that begin alike, of six lengths; the third has only one place, the sixth none."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for length, n_places in ((9, 4), (14, 6), (5, 1), (11, 3), (7, 5), (6, 0), (9, 2)):
        ids = PREFIX + tuple(torch.randint(5, 90, (length,), generator=generator).tolist())
        found.append(Row(ids, tuple(range(len(ids) - 1 - n_places, len(ids) - 1))))
    return found


def adapted(family: str = "llama", *, layers: tuple[int, ...] = (1, 2), **changes):
    """A tiny model without dropout, with a random adapter in the blocks above the first one."""
    from peft import LoraConfig, get_peft_model

    model = hf_model(family, **changes)
    if not changes:
        without_dropout(model)
    targets = ["c_proj"] if family == "gpt2" else ["o_proj", "down_proj"]
    torch.manual_seed(3)
    config = LoraConfig(
        target_modules=targets, layers_to_transform=list(layers), init_lora_weights=False,
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    return get_peft_model(model, config).train()


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def loss_and_gradients(passes: TrainingPasses, model, rows: list[Row]) -> list[torch.Tensor]:
    """A loss of the logits, and its gradient at every matrix of the adapter."""
    loss = passes.logits(model, rows).float().log_softmax(-1)[:, 7].sum()
    return [loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_whole_passes(family, rows):
    model = adapted(family)
    passes = TrainingPasses.of(model, rows)
    assert (passes.block, passes.prefix) == (1, PREFIX)
    wanted = loss_and_gradients(TrainingPasses(), model, rows)
    assert min(tensor.abs().max() for tensor in wanted) > 1e-3
    for got, whole in zip(loss_and_gradients(passes, model, rows), wanted, strict=True):
        torch.testing.assert_close(got, whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(passes.states(model, rows), TrainingPasses().states(model, rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_or_computed_anew_and_in_whatever_batch_it_was_met_first_the_bits_are_the_same(family, rows):
    model = adapted(family)
    kept, anew = (TrainingPasses.of(model, rows, keep=keep) for keep in (True, False))
    assert kept.kept is not None
    assert anew.kept is None
    for batch in ([rows[1], rows[4]], [rows[0], rows[1], rows[2]], rows, [rows[4]]):
        for got, wanted in zip(*(loss_and_gradients(p, model, batch) for p in (kept, anew)), strict=True):
            assert torch.equal(got, wanted)
    assert len(kept.kept.streams) == len(rows)


def test_a_conversation_goes_through_the_frozen_blocks_once_and_the_prefix_through_the_others_once_a_batch(rows):
    model = adapted(layers=(2,))
    passes = TrainingPasses.of(model, rows)
    assert passes.block == 2
    ran: list[tuple[int, tuple[int, ...]]] = []
    first, last = blocks_of(model)[0].mlp, blocks_of(model)[2].mlp
    for number, part in ((0, first), (2, last)):
        part.register_forward_pre_hook(lambda _, args, number=number: ran.append((number, tuple(args[0].shape[:2]))))
    passes.logits(model, rows)
    assert [shape for number, shape in ran if number == 0] == [(1, 20), *((1, len(row.ids) - 20) for row in rows)]
    assert [shape for number, shape in ran if number == 2] == [(1, 20), (1, 20), (7, 14)]
    ran.clear()
    passes.logits(model, rows[:2])
    assert ran == [(2, (1, 20)), (2, (2, 14))]


def test_what_has_no_room_is_computed_again(rows):
    model = adapted()
    little = TrainingPasses.of(model, rows, budget=15 * 32 * 4)
    assert little.kept is not None
    for got, wanted in zip(
        *(loss_and_gradients(p, model, rows) for p in (little, TrainingPasses.of(model, rows))), strict=True
    ):
        assert torch.equal(got, wanted)
    assert [tuple(stream.shape) for stream in little.kept.streams.values()] == [(9, 32), (5, 32)]  # and no longer one


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: adapted(attention_dropout=0.2), id="attention dropout"),
        pytest.param(lambda: hf_model("gpt2").requires_grad_(False), id="dropout in every block"),
    ],
)
def test_a_model_that_drops_out_runs_whole(model, rows):
    passes = TrainingPasses.of(model(), rows)
    assert (passes.block, passes.prefix, passes.kept) == (0, (), None)


def test_where_weights_below_train_nothing_is_frozen(rows):
    model = hf_model("llama")
    assert TrainingPasses.of(model, rows).block == 0
    model.requires_grad_(False)
    blocks_of(model)[2].requires_grad_(True)
    assert TrainingPasses.of(model, rows).block == 2
    model.get_input_embeddings().requires_grad_(True)
    passes = TrainingPasses.of(model, rows)
    assert (passes.block, passes.prefix) == (0, PREFIX)


def test_a_block_that_reads_what_an_earlier_one_wrote_runs_with_it(rows):
    """As where blocks share keys and values: going on from a block would go on without them."""
    model = adapted(layers=(2,))
    first, last = blocks_of(model)[0], blocks_of(model)[2]
    written = []
    first.mlp.register_forward_hook(lambda _, __, output: written.append(output))

    def reads(_: nn.Module, __: tuple, output: torch.Tensor) -> torch.Tensor:
        found = written[-1]
        return output + 3 * found if found.shape == output.shape else output * 0

    last.register_forward_hook(reads)
    passes = TrainingPasses.of(model, rows)
    assert passes.block == 0
    wanted = model(input_ids=torch.tensor([rows[0].ids])).logits[0, list(rows[0].places)]
    torch.testing.assert_close(passes.logits(model, rows[:1]), wanted)


def test_a_cache_that_cannot_be_repeated_is_not_shared(rows, monkeypatch):
    monkeypatch.setattr(training_passes, "repeats", lambda cache: False)
    model = adapted()
    passes = TrainingPasses.of(model, rows)
    assert (passes.block, passes.prefix) == (1, ())
    for got, whole in zip(*(loss_and_gradients(p, model, rows) for p in (passes, TrainingPasses())), strict=True):
        torch.testing.assert_close(got, whole, rtol=1e-3, atol=1e-4)


def test_a_place_is_not_in_the_prefix_and_a_short_prefix_is_not_shared(rows):
    model = adapted()
    early = Row(rows[0].ids, (12, 13))
    assert TrainingPasses.of(model, [*rows, early]).prefix == PREFIX[:12]
    assert TrainingPasses.of(model, [*rows, Row(rows[0].ids, (5,))]).prefix == ()


def test_looking_draws_no_random_number_and_leaves_the_model_in_its_mode(rows):
    model = hf_model("gpt2")
    blocks_of(model)[1].train()
    before, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    TrainingPasses.of(model, rows)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert not any("forward" in vars(module) for module in model.modules())

"""A planted turn is found where it is, a straight path has none, and every number agrees with a slow oracle."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from em_interp.organisms import turning_points as module
from em_interp.organisms.phase_change import EffectPath, local_cosine, phases
from em_interp.organisms.turning_points import change_point
from tests.builders import generator, path, trajectory


def same(a, b, tolerance=1e-6) -> bool:
    return torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=tolerance, equal_nan=True)


# ---------------------------------------------------------------- local cosine


def test_local_cosine_is_minus_one_on_a_line_and_zero_at_a_right_angle():
    line = torch.arange(10.0)[:, None] * torch.tensor([3.0, 4.0])
    for window in (1, 2, 4):
        found = local_cosine(line, window)
        assert found[:window].isnan().all()
        assert found[-window:].isnan().all()
        assert same(found[window:-window], -torch.ones(10 - 2 * window))
    corner = torch.tensor([[0, 0], [1, 0], [2, 0], [2, 1], [2, 2.0]])
    assert same(local_cosine(corner, 1), [math.nan, -1, 0, -1, math.nan])
    assert same(local_cosine(corner, 2), [math.nan, math.nan, 0, math.nan, math.nan])
    back = torch.tensor([[0.0], [1], [0]])
    assert same(local_cosine(back, 1), [math.nan, 1, math.nan])


def test_local_cosine_is_the_formula():
    v = path(generator(0)).double()
    for window in (1, 3, 7):
        found = local_cosine(v, window)
        for t in range(window, len(v) - window):
            a, b = v[t - window] - v[t], v[t + window] - v[t]
            assert found[t] == pytest.approx(float(a @ b / (a.norm() * b.norm())))


def test_local_cosine_is_nan_where_the_path_hardly_moves():
    v = torch.tensor([0, 1, 2, 2.05, 2.1, 3.1, 4.1, 5.1])[:, None]
    assert local_cosine(v, 1).isnan().nonzero().flatten().tolist() == [0, 3, 7]
    assert local_cosine(v, 1, threshold=0.01).isnan().nonzero().flatten().tolist() == [0, 7]
    assert local_cosine(v, 1, threshold=1.01).isnan().all()
    assert local_cosine(v, 4).isnan().all()


# ---------------------------------------------------------------- sums over breaks, against slow ones


def test_products_and_gains_are_the_slow_ones():
    g = generator(1)
    units = torch.nn.functional.normalize(torch.randn(2, 17, 5, generator=g, dtype=torch.float64), dim=-1)
    margin, products, gains, bends = (
        module._margin(17),
        module._products(units),
        module._gain(units),
        module._bend(units),
    )
    for row, u in enumerate(units):
        for column, m in enumerate(range(margin, 17 - margin + 1)):
            pairs = [(i, j) for i in range(17) for j in range(17) if abs(i - j) > 2]
            means = [
                np.mean([float(u[i] @ u[j]) for i, j in pairs if ((i < m) + (j < m)) == both]) for both in (2, 0, 1)
            ]
            for values, mean in zip(products, means, strict=True):
                assert float(values[row, column]) == pytest.approx(mean)
            squares = [float((x - x.mean(0)).square().sum()) for x in (u, u[:m], u[m:])]
            assert float(gains[row, column]) == pytest.approx(squares[0] - squares[1] - squares[2])
            bend = 2 * (math.sqrt(max(means[0], 0) * max(means[1], 0)) - means[2]) * m * (17 - m) / 17
            assert float(bends[row, column]) == pytest.approx(bend)


def test_the_break_of_ruptures_is_the_one_with_the_largest_gain():
    for seed in range(5):
        units, _ = module.unit_increments(path(generator(seed), 40, 8, noise=1.5).double())
        assert module.best_break(units) == int(module._gain(units).argmax()) + module._margin(40)


def test_paths_keep_step_lengths_signal_and_the_size_of_noise():
    units, _ = module.unit_increments(path(generator(2), 60, 200, noise=1.0).double())
    noise = module.path_noise(units, 30, straight=False)
    drawn = torch.cat(list(module.simulated_paths(noise, 1.0, 200, generator(0))))
    assert same(drawn.norm(dim=2), torch.ones(200, 60), 1e-5)
    assert float((drawn[:, :, 0].mean(0) - noise.along.float()).abs().mean()) < 0.05
    assert float(noise.along.mean()) == pytest.approx(1 / math.sqrt(2), abs=0.05)
    assert float(drawn[:, :, 1].abs().max()) == 0  # straight: nothing along the second side's own axis
    turned = torch.cat(list(module.simulated_paths(noise, 0.0, 50, generator(0))))
    assert float(turned[:, 30:, 0].abs().max()) == 0
    assert float(turned[:, :30, 1].abs().max()) == 0


def test_noise_with_memory_is_drawn_as_large_as_it_is():
    units, _ = module.unit_increments(path(generator(2), 60, 200, noise=1.0, memory=0.6).double())
    noise = module.path_noise(units, 30, straight=True)
    drawn = torch.cat(list(module.simulated_paths(noise, 1.0, 200, generator(0))))
    across = drawn[:, :, 2:]
    neighbours = (across[:, 1:] * across[:, :-1]).sum() / (across[:, 1:].norm(dim=2) * across[:, :-1].norm(dim=2)).sum()
    assert float(neighbours) == pytest.approx(noise.memory, abs=0.05)
    assert float(drawn[:, :, 0].mean()) == pytest.approx(float(noise.along.mean()), abs=0.03)


def test_noise_has_random_signs_and_does_not_add_up_to_zero():
    units, _ = module.unit_increments(path(generator(2), 60, 200, noise=0.2).double())
    noise = module.path_noise(units, 30, straight=True)
    assert float(noise.noise[:, 1:].sum(0).norm()) < 0.1
    sums = torch.cat(list(module.simulated_paths(noise, 1.0, 99, generator(0))))[:, :, 2:].sum(1).norm(dim=1)
    assert float(sums.square().mean().sqrt()) == pytest.approx(0.2 * math.sqrt(60), rel=0.2)


def test_memory_is_recovered_and_a_turn_is_none():
    for memory in (0.0, 0.6):
        found = [
            module.path_noise(
                module.unit_increments(path(generator(s), 80, 300, memory=memory, turn=40))[0].double(),
                40,
                straight=s % 2 == 0,
            )
            for s in range(6)
        ]
        assert np.mean([noise.memory for noise in found]) == pytest.approx(memory + 0.08, abs=0.05)  # rounded up


def test_noise_of_many_dimensions_keeps_its_lengths():
    g = generator(3)
    across = torch.randn(300, 400, generator=g).double()
    narrow = module._narrowed(across)
    assert narrow.shape == (300, 128)
    assert float((narrow.norm(dim=1) / across.norm(dim=1)).mean()) == pytest.approx(1, abs=0.02)
    few = module._narrowed(across[:100])
    assert same(few @ few.T, across[:100] @ across[:100].T, 1e-8)


# ---------------------------------------------------------------- the change point


@pytest.mark.parametrize(("n", "d"), [(40, 64), (60, 200), (80, 600)])
@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_a_planted_turn_is_found_where_it_is(n, d, memory):
    g = generator(4)
    for turn in (n // 4, n // 2, n - n // 4):
        found = change_point(
            path(g, n, d, noise=1.0, turn=turn, memory=memory), torch.arange(n + 1) * 5, n_resamples=99
        )
        assert found.found
        assert abs(found.step - 5 * turn) <= 5
        assert found.low <= 5 * turn <= found.high
        assert found.angle == pytest.approx(90, abs=15)


@pytest.mark.parametrize(
    "kind",
    [{}, {"anisotropic": True}, {"memory": 0.6}, {"memory": 0.6, "anisotropic": True, "shrinking": True}],
    ids=["isotropic", "anisotropic", "momentum", "all of it"],
)
def test_a_straight_path_has_no_turn_in_95_of_100(kind):
    g = generator(5)
    steps = torch.arange(49) * 5
    found = [change_point(path(g, noise=1.0, **kind), steps, n_resamples=99, seed=i).found for i in range(200)]
    assert sum(found) <= 10


def test_intervals_hold_the_turn():
    g = generator(6)
    held, wide = [], []
    for i in range(60):
        turn = int(torch.randint(15, 34, (), generator=g))
        found = change_point(
            path(g, noise=1.5, turn=turn, angle=60, anisotropic=True), torch.arange(49), n_resamples=99, seed=i
        )
        held.append(found.low <= turn <= found.high)
        wide.append(found.high - found.low)
    assert np.mean(held) >= 0.88  # two standard errors below 95 %
    assert 0 < np.mean(wide) < 24


def test_lengths_of_steps_change_nothing():
    g = generator(7)
    v, steps = path(g, turn=20, noise=1.0), torch.arange(49)
    shrinking = torch.cat([v[:1], (v.diff(dim=0) * torch.linspace(1, 0.01, 48)[:, None]).cumsum(0)])
    assert repr(change_point(v, steps)) == repr(change_point(shrinking, steps))


def test_a_signal_that_fades_into_noise_is_no_turn():
    g, found = generator(17), []
    fading = torch.linspace(1, 0.02, 60)[:, None] * torch.eye(1, 100)
    for i in range(100):
        noise = path(g, 60, 100, noise=0.5, anisotropic=True).diff(dim=0) - torch.eye(1, 100)
        found.append(change_point((fading + noise).cumsum(0), torch.arange(60), n_resamples=99, seed=i).found)
    assert sum(found) <= 12


def test_a_path_of_pure_noise_does_not_turn():
    g = generator(8)
    found = [
        change_point(torch.randn(49, 64, generator=g).cumsum(0), torch.arange(49), n_resamples=99) for _ in range(40)
    ]
    assert sum(c.found for c in found) <= 5


# ---------------------------------------------------------------- all of it


def test_phases_of_a_trajectory():
    t = trajectory()
    p = phases(t, "a.B", n_resamples=99)
    v = t.path("a.B").double()
    assert same(p.norm, v.norm(dim=1))
    assert p.cosine_to_final[0].isnan()
    assert same(p.cosine_to_final[1:], torch.nn.functional.cosine_similarity(v[1:], v[-1:]))
    assert p.windows == (2, 5, 10)
    assert same(p.local_cosine, torch.stack([local_cosine(v, window) for window in p.windows]))
    assert p.steps.equal(t.steps)
    assert p.loss is not None
    assert p.grad_norm is not None
    assert p.loss[0].isnan()
    assert float(p.loss[2]) == pytest.approx(float(t.loss[5:10].median()))
    assert float(p.grad_norm[48]) == pytest.approx(float(t.grad_norm[235:240].median()))
    assert p.change_point.step == 100
    assert repr(p.change_point) == repr(change_point(v, t.steps, n_resamples=99))
    assert repr(p) == "Phases('a.B', 49 checkpoints to step 240, turns at step 100 [100, 100], p = 0.010)"
    assert phases(t, n_resamples=40).name == "every B"
    assert same(phases(t, n_resamples=40).norm, t.path().norm(dim=1), 1e-4)


def test_the_floor_holds_a_straight_path_and_not_a_turn():
    inside = []
    for seed in range(8):
        p = phases(path(generator(seed), noise=1.0, memory=0.3), n_resamples=99)
        defined = p.local_cosine.isfinite()
        assert p.floor.isfinite().equal(defined.expand(2, -1, -1))
        inside.append(((p.floor[0] <= p.local_cosine) & (p.local_cosine <= p.floor[1]))[defined].double().mean())
    assert np.mean(inside) > 0.85
    p = phases(path(generator(10), turn=24, noise=0.5), n_resamples=99)
    assert (p.local_cosine[:, 24] > p.floor[1, :, 24] + 0.2).all()
    assert (p.floor[1, :, 24] < -0.6).all()


def test_the_floor_goes_by_the_lengths_of_the_steps():
    g, inside = generator(16), []
    lengths = torch.where(torch.arange(60) % 5 == 0, 1.0, 0.001)  # so that a window of five is as noisy as one step
    for _ in range(5):
        v = path(g, 60, noise=1.0)
        v = torch.cat([v[:1], (v.diff(dim=0) * lengths[:, None]).cumsum(0)])
        p = phases(v, windows=[5], n_resamples=99)
        inside.append(((p.floor[0] <= p.local_cosine) & (p.local_cosine <= p.floor[1]))[0, 5:-5].double().mean())
    assert np.mean(inside) > 0.8


def test_the_floor_of_a_path_without_noise_is_minus_one():
    line = torch.arange(30.0)[:, None] ** 2 * torch.tensor([3.0, 4.0, 0.0])
    p = phases(line, n_resamples=40)
    assert same(p.floor[p.floor.isfinite()], torch.full((int(p.floor.isfinite().sum()),), -1.0), 1e-3)
    assert not p.change_point.found


def test_principal_components_are_isometric_and_point_to_the_end():
    v = path(generator(11), d=3, turn=20).double()
    p = phases(v, n_resamples=40)
    assert p.pca.shape == (49, 3)
    assert same(torch.cdist(p.pca, p.pca), torch.cdist(v, v), 1e-5)
    assert float(p.explained.sum()) == pytest.approx(1)
    assert (p.pca[-1] >= p.pca[0]).all()
    assert same(p.explained, p.pca.var(0) / p.pca.var(0).sum())


def test_rotating_and_scaling_change_nothing():
    for n, d in ((48, 64), (140, 160)):
        g = generator(12)
        v = path(g, n, d, turn=n // 3, noise=1.0, anisotropic=True).double()
        rotation = torch.linalg.qr(torch.randn(d, d, generator=g).double()).Q
        a, b = phases(v, n_resamples=40), phases(7 * v @ rotation, n_resamples=40)
        assert repr(a.change_point) == repr(b.change_point)
        for what in ("cosine_to_final", "local_cosine", "explained"):
            assert same(getattr(a, what), getattr(b, what))
        assert same(a.floor, b.floor, 1e-3)
        assert same(7 * a.pca, b.pca, 1e-4)
        assert same(7 * a.norm, b.norm, 1e-4)


def test_the_same_seed_gives_the_same_and_another_another():
    v = path(generator(13), noise=1.0)
    assert phases(v, n_resamples=40).floor.nan_to_num(9).equal(phases(v, n_resamples=40).floor.nan_to_num(9))
    assert (
        not phases(v, n_resamples=40).floor.nan_to_num(9).equal(phases(v, n_resamples=40, seed=1).floor.nan_to_num(9))
    )


def test_bad_paths_are_refused_in_words():
    v = path(generator(14))
    with pytest.raises(ValueError, match=r"has 1 checkpoint and a change of direction takes at least 12: train again"):
        phases(v[:1])
    with pytest.raises(ValueError, match=r"path has 49 checkpoints and there are 4 steps: give one a checkpoint"):
        phases(v, steps=torch.arange(4))
    with pytest.raises(ValueError, match="they should rise"):
        change_point(v, torch.zeros(49, dtype=torch.long))
    with pytest.raises(ValueError, match="NaN or infinite at step 3: the training diverged"):
        phases(v.index_fill(0, torch.tensor([3]), math.nan))
    with pytest.raises(ValueError, match="stays where it is for 49 checkpoints"):
        phases(torch.ones(49, 3))
    for windows in ([25], [0], []):
        with pytest.raises(ValueError, match=r"path has 49 checkpoints: choose some from 1 to 24"):
            phases(v, windows=windows)
    with pytest.raises(ValueError, match="n_resamples is 10: a 95 % null takes at least 40"):
        phases(v, n_resamples=10)
    with pytest.raises(ValueError, match="no matrix 'c'"):
        phases(trajectory(), "c")


def test_the_smallest_path_and_a_checkpoint_twice():
    v = path(generator(15), 11, 3)
    assert phases(v, n_resamples=40).windows == (1, 2)
    paused = torch.cat([v[:6], v[5:]])
    p = phases(paused, windows=[1], n_resamples=40)
    assert 0 < p.change_point.p_value <= 1
    assert p.local_cosine[0].isnan().nonzero().flatten().tolist() == [0, 5, 6, 12]
    assert p.floor.isnan().equal(p.local_cosine.isnan().expand(2, -1, -1))


def test_effect_paths_have_a_number_for_each_scale_and_checkpoint():
    numbers = torch.zeros(2, 3)
    e = EffectPath("misalignment", torch.arange(3), (1.0, 5.0), numbers, numbers, numbers)
    assert repr(e) == "EffectPath('misalignment', 3 checkpoints, scales 1, 5)"
    with pytest.raises(ValueError, match=r"value has shape \(1, 3\) and there are 2 scales and 3 checkpoints"):
        replace(e, value=numbers[:1], low=numbers[:1], high=numbers[:1])

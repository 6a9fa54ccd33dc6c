"""Advantages and returns: relations that must hold first, then the slow twins, on random shapes and episode ends."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.advantage import discounted_sum, gae, returns
from tests import reference

EXAMPLES = settings(max_examples=50, deadline=None)
GAMMA, LAM = 0.97, 0.9


def make_columns(
    seed: int, num_steps: int, num_columns: int, dtype: str = "float64"
) -> dict[str, np.ndarray]:
    """Arguments of `gae`: next_value is value[t + 1] but at episode ends and in the last row; NaN where terminated."""
    rng = np.random.default_rng(seed)
    shape = (num_steps, num_columns)
    reward, value, final_value = rng.standard_normal((3, *shape)).astype(dtype)
    terminated, truncated = rng.random((2, *shape)) < rng.choice([0.0, 0.1, 0.5])
    done = terminated | truncated
    next_value = np.where(done, final_value, np.roll(value, -1, axis=0))
    next_value[-1:] = final_value[-1:]
    next_value[terminated] = np.nan
    return {
        "reward": reward,
        "value": value,
        "next_value": next_value,
        "terminated": terminated,
        "done": done,
    }


COLUMNS = st.builds(make_columns, st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 40))
FACTOR = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def without_value(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in columns.items() if name != "value"}


@EXAMPLES
@given(COLUMNS, FACTOR)
def test_lambda_one_gives_the_return_minus_the_value(columns, gamma):
    expected = returns(**without_value(columns), gamma=gamma) - columns["value"]
    np.testing.assert_allclose(gae(**columns, gamma=gamma, lam=1.0), expected, rtol=1e-10, atol=1e-12)


@EXAMPLES
@given(COLUMNS, FACTOR)
def test_lambda_zero_gives_the_td_error(columns, gamma):
    expected = reference.td_errors(
        *(columns[k] for k in ("reward", "value", "next_value", "terminated")), gamma
    )
    np.testing.assert_allclose(gae(**columns, gamma=gamma, lam=0.0), expected, rtol=1e-12, atol=1e-13)


@EXAMPLES
@given(COLUMNS, FACTOR)
def test_no_value_and_lambda_one_give_the_return_to_go_of_reinforce(columns, gamma):
    nothing = np.zeros_like(columns["reward"])
    advantage = gae(columns["reward"], nothing, nothing, columns["terminated"], columns["done"], gamma, 1.0)
    assert np.array_equal(advantage, discounted_sum(columns["reward"], columns["done"], gamma))


@EXAMPLES
@given(COLUMNS, FACTOR, FACTOR)
def test_gae_equals_the_double_sum_of_discounted_td_errors(columns, gamma, lam):
    expected = reference.gae(**columns, gamma=gamma, lam=lam)
    np.testing.assert_allclose(gae(**columns, gamma=gamma, lam=lam), expected, rtol=1e-10, atol=1e-12)


@EXAMPLES
@given(COLUMNS, FACTOR)
def test_returns_equal_their_sums_written_out(columns, gamma):
    arguments = without_value(columns)
    np.testing.assert_allclose(
        returns(**arguments, gamma=gamma), reference.returns(**arguments, gamma=gamma), rtol=1e-10, atol=1e-12
    )
    expected = reference.discounted_sum(columns["reward"], columns["done"], gamma)
    np.testing.assert_allclose(
        discounted_sum(columns["reward"], columns["done"], gamma), expected, rtol=1e-10, atol=1e-12
    )


@EXAMPLES
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_float32_is_kept_and_agrees_with_float64_to_its_precision(seed, num_steps, num_columns):
    columns = make_columns(seed, num_steps, num_columns, "float32")
    advantage = gae(**columns, gamma=GAMMA, lam=LAM)
    assert advantage.dtype == np.float32
    assert advantage.shape == (num_steps, num_columns)
    np.testing.assert_allclose(
        advantage, reference.gae(**columns, gamma=GAMMA, lam=LAM), rtol=1e-4, atol=2e-5
    )
    assert returns(**without_value(columns), gamma=GAMMA).dtype == np.float32
    assert discounted_sum(columns["reward"], columns["done"], GAMMA).dtype == np.float32


@pytest.mark.parametrize("num_columns", [1, 8, 33, 200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_compiled_sums_are_to_the_bit_numpys_whatever_the_width(dtype, num_columns):
    """No fused multiply-add, no reordering, no widening: NumPy's elementwise operations in the same order."""
    columns = make_columns(5, 50, num_columns, dtype)
    r, v, nv, terminated, done = columns.values()
    gamma, gamma_lam = r.dtype.type(GAMMA), r.dtype.type(GAMMA * LAM)
    expected, later = np.empty_like(r), np.zeros(num_columns, dtype)
    for t in reversed(range(50)):
        delta = np.where(terminated[t], r[t] - v[t], r[t] + gamma * nv[t] - v[t])
        later = expected[t] = np.where(done[t], delta, delta + gamma_lam * later)
    assert np.array_equal(gae(**columns, gamma=GAMMA, lam=LAM), expected)


@EXAMPLES
@given(COLUMNS)
def test_what_follows_a_termination_is_ignored_even_if_it_is_nan(columns):
    other = columns | {"next_value": np.where(columns["terminated"], 1e30, columns["next_value"])}
    for function, pick in ((gae, dict), (returns, without_value)):
        lam = {"lam": LAM} if function is gae else {}
        result = function(**pick(columns), gamma=GAMMA, **lam)
        assert np.isfinite(result).all()
        assert np.array_equal(result, function(**pick(other), gamma=GAMMA, **lam))


def test_where_an_episode_is_terminated_and_truncated_at_once_termination_wins():
    reward, value = np.array([[1.0]]), np.array([[0.25]])
    yes, no = np.array([[True]]), np.array([[False]])
    both = gae(reward, value, np.array([[8.0]]), yes, yes, 0.5, 0.5)
    assert both == 0.75  # r - V, nothing of the 8
    assert gae(reward, value, np.array([[8.0]]), no, yes, 0.5, 0.5) == 4.75  # r + 8/2 - V
    assert returns(reward, np.array([[8.0]]), yes, yes, 0.5) == 1.0


def test_a_termination_in_the_last_row_is_heeded_even_where_done_does_not_repeat_it():
    reward, nan, yes = np.array([[1.0], [2.0]]), np.full((2, 1), np.nan), np.array([[False], [True]])
    assert returns(reward, nan, yes, np.zeros_like(yes), 0.5).tolist() == [[2.0], [2.0]]
    assert gae(reward, 0 * reward, 0 * reward, yes, np.zeros_like(yes), 0.5, 1.0).tolist() == [[2.0], [2.0]]


@EXAMPLES
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 5))
def test_a_masked_row_inserted_after_an_episode_changes_no_other_row(seed, num_steps, num_columns):
    """The row that NEXT_STEP autoreset inserts: its action was ignored, what it holds is meaningless (here NaN)."""
    columns = make_columns(seed, num_steps, num_columns)
    end = np.random.default_rng(seed).integers(num_steps)
    columns["done"][end] = True
    filler = {"reward": np.nan, "value": np.nan, "next_value": np.nan, "terminated": False, "done": True}
    longer = {name: np.insert(array, end + 1, filler[name], axis=0) for name, array in columns.items()}
    advantage = np.delete(gae(**longer, gamma=GAMMA, lam=LAM), end + 1, axis=0)
    assert np.array_equal(advantage, gae(**columns, gamma=GAMMA, lam=LAM))


@EXAMPLES
@given(COLUMNS, st.integers(0, 2**32))
def test_columns_do_not_know_of_each_other(columns, seed):
    order = np.random.default_rng(seed).permutation(columns["reward"].shape[1])
    together = gae(**columns, gamma=GAMMA, lam=LAM)
    alone = [gae(**{k: a[:, [n]] for k, a in columns.items()}, gamma=GAMMA, lam=LAM) for n in order]
    assert np.array_equal(np.concatenate(alone, axis=1), together[:, order])


@EXAMPLES
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 5), st.integers(1, 11))
def test_cutting_an_episode_in_two_and_bootstrapping_gives_the_same_td_errors(
    seed, num_steps, num_columns, cut
):
    columns = make_columns(seed, num_steps, num_columns)
    whole = gae(**columns, gamma=GAMMA, lam=0.0)
    parts = [
        gae(**{k: a[s] for k, a in columns.items()}, gamma=GAMMA, lam=0.0)
        for s in (slice(cut), slice(cut, None))
    ]
    assert np.array_equal(np.concatenate(parts), whole)


# An MDP in closed form: reward 1 at every step, for ever. V = 1 / (1 - gamma).


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_with_the_true_value_a_truncated_episode_has_no_advantage_and_a_death_has_a_known_one(lam):
    gamma, num_steps, end = 0.99, 40, 24
    reward = np.ones((num_steps, 1))
    value = np.full((num_steps, 1), 1 / (1 - gamma))
    cut = np.zeros((num_steps, 1), bool)
    cut[end] = True
    never = np.zeros_like(cut)

    truncated = gae(reward, value, value, never, cut, gamma, lam)
    np.testing.assert_allclose(truncated, 0.0, atol=1e-10)

    # Death at `end` loses gamma V there, and each step before it sees that loss discounted by gamma lam.
    died = gae(reward, value, value, cut, cut, gamma, lam)
    steps_to_death = end - np.arange(end + 1)
    np.testing.assert_allclose(
        died[: end + 1, 0], -gamma / (1 - gamma) * (gamma * lam) ** steps_to_death, rtol=1e-9, atol=1e-10
    )
    np.testing.assert_allclose(died[end + 1 :], 0.0, atol=1e-10)  # the next episode does not feel it


def test_returns_of_the_endless_mdp_are_its_value_if_truncated_and_a_finite_sum_if_terminated():
    gamma, num_steps = 0.9, 7
    reward, next_value = np.ones((num_steps, 1)), np.full((num_steps, 1), 1 / (1 - gamma))
    end = np.arange(num_steps)[:, None] == num_steps - 1
    never = np.zeros_like(end)
    np.testing.assert_allclose(returns(reward, next_value, never, end, gamma), 10.0, rtol=1e-12)
    np.testing.assert_allclose(returns(reward, next_value, never, never, gamma), 10.0, rtol=1e-12)
    finite = (1 - gamma ** np.arange(num_steps, 0, -1)) / (1 - gamma)
    np.testing.assert_allclose(returns(reward, next_value, end, end, gamma)[:, 0], finite, rtol=1e-12)
    np.testing.assert_allclose(discounted_sum(reward, end, gamma)[:, 0], finite, rtol=1e-12)


def test_the_memory_layout_and_write_protection_of_the_arrays_do_not_matter():
    columns = make_columns(3, 9, 6)
    expected = gae(**columns, gamma=GAMMA, lam=LAM)
    fortran = {name: np.asfortranarray(array) for name, array in columns.items()}
    strided = {name: np.repeat(array, 2, axis=1)[:, ::2] for name, array in columns.items()}
    protected = {name: array.copy() for name, array in columns.items()}
    for array in protected.values():
        array.flags.writeable = False  # as arrays from an object store are
    for other in (fortran, strided, protected):
        assert np.array_equal(gae(**other, gamma=GAMMA, lam=LAM), expected)


def test_the_result_is_a_fresh_array_and_the_arguments_are_left_alone():
    columns = make_columns(4, 5, 3)
    before = {name: array.copy() for name, array in columns.items()}
    first = gae(**columns, gamma=GAMMA, lam=LAM)
    first += 1
    assert np.array_equal(first, gae(**columns, gamma=GAMMA, lam=LAM) + 1)
    assert first.flags.c_contiguous
    for name, array in columns.items():
        assert np.array_equal(array, before[name], equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_rows_or_no_columns_give_an_empty_result(shape):
    empty = {k: a[: shape[0], : shape[1]] for k, a in make_columns(0, 3, 3).items()}
    assert gae(**empty, gamma=GAMMA, lam=LAM).shape == shape
    assert returns(**without_value(empty), gamma=GAMMA).shape == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": np.ones((3, 2), np.float16)}, "reward must be a float32 or float64 array, got float16"),
        ({"reward": [[1.0, 1.0]] * 3}, "reward must be .*, got list"),
        ({"value": np.ones((3, 2), np.float32)}, "value must have the shape and type of reward"),
        ({"next_value": np.ones((4, 2))}, r"next_value .* float64 \(3, 2\), got float64 \(4, 2\)"),
        ({"value": np.ones(3)}, r"value must be time-major, \[T, N\], got shape \(3,\)"),
        ({"terminated": np.zeros((3, 2))}, "terminated must be a bool array, got float64"),
        ({"done": np.zeros((2, 3), bool)}, r"done must have the shape of reward, \(3, 2\), got \(2, 3\)"),
        ({"gamma": 1.01}, r"gamma must lie in \[0, 1\], got 1.01"),
        ({"lam": -0.5}, "lam must lie in"),
        ({"gamma": float("nan")}, "gamma must lie in .*, got nan"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(changes, message):
    arguments = make_columns(0, 3, 2) | {"gamma": GAMMA, "lam": LAM} | changes
    with pytest.raises(ValueError, match=message):
        gae(**arguments)


CUDA_CHECK = """
import numpy as np
from numba import cuda
from distrl.maths.advantage import gae
from distrl.maths.advantage_cuda import gae_cuda
from tests.maths.test_advantage import make_columns

for dtype in ("float32", "float64"):
    for shape in ((1, 1), (6, 3), (5, 130)):  # 130 columns: two blocks, the second not full
        columns = make_columns(1, *shape, dtype)
        result = gae_cuda(*map(cuda.to_device, columns.values()), 0.97, 0.9).copy_to_host()
        assert result.dtype == dtype
        np.testing.assert_allclose(result, gae(**columns, gamma=0.97, lam=0.9), rtol=1e-5, atol=1e-6)
out = cuda.device_array(shape, np.float64)
assert gae_cuda(*map(cuda.to_device, columns.values()), 0.97, 0.9, out=out) is out
np.testing.assert_array_equal(out.copy_to_host(), result)
try:
    gae_cuda(*map(cuda.to_device, columns.values()), 0.97, 0.9, out=cuda.device_array((1, 1), np.float64))
except ValueError as error:
    assert "out must be float64 (5, 130)" in str(error)
else:
    raise SystemExit("a wrong out was taken")
columns["done"] = columns["done"].astype(np.uint8)
try:
    gae_cuda(*map(cuda.to_device, columns.values()), 0.97, 0.9)
except ValueError as error:
    assert "done must be bool" in str(error)
else:
    raise SystemExit("a wrong type was taken")
print("agrees")
"""


@pytest.mark.timeout(60)
def test_the_cuda_twin_agrees_under_numbas_simulator():
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    command = [sys.executable, "-W", "error", "-c", CUDA_CHECK]
    outcome = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, timeout=50
    )
    assert outcome.stdout.strip() == "agrees", outcome.stderr


def test_the_cpu_kernels_never_touch_cuda():
    code = "import sys, distrl.maths.advantage; sys.exit('numba.cuda.cudadrv.driver' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

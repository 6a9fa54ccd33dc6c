"""The first ratio of a run: 1 within rounding, or the run ends and names what to turn off."""

import pytest

from distrl.errors import RunFailed
from distrl.rlhf.first_ratio import BOUND, bound_of, check_first_ratio, turn_off

NAN = float("nan")


def metrics(off: float, lag: float = 0.0, mismatch: float = NAN) -> dict[str, float]:
    return {"first_ratio_deviation": off, "policy_lag": lag, "sampling_mismatch": mismatch}


@pytest.mark.parametrize(("off", "dtype"), [(0.0, "float32"), (9e-6, "float32"), (0.3, "bfloat16")])
def test_a_ratio_within_rounding_is_passed_over(off: float, dtype: str) -> None:
    assert check_first_ratio(metrics(off), BOUND[dtype], "--no-fast-paths") is None


def test_rounding_of_a_large_model_is_a_warning() -> None:
    note = check_first_ratio(metrics(2e-4), BOUND["float32"], "--no-fast-paths")
    assert note is not None and "2.0e-04" in note


@pytest.mark.parametrize(("off", "dtype"), [(2e-3, "float32"), (float("inf"), "float32"), (1.5, "bfloat16")])
def test_two_functions_end_the_run(off: float, dtype: str) -> None:
    with pytest.raises(RunFailed, match="first ratio.*--no-fast-paths.*--exact-ratio"):
        check_first_ratio(metrics(off), BOUND[dtype], "--no-fast-paths")


def test_responses_of_an_older_policy_and_gradients_without_a_number_are_others_affair() -> None:
    assert check_first_ratio(metrics(0.5, lag=1.0), BOUND["float32"], "") is None
    assert check_first_ratio(metrics(NAN), BOUND["float32"], "") is None
    assert check_first_ratio({}, BOUND["float32"], "") is None


def test_log_probs_computed_again_do_not_hide_the_mismatch() -> None:
    note = check_first_ratio(metrics(0.0, mismatch=0.16), BOUND["float32"], "--no-fast-paths")
    assert note is not None and "0.16 nats" in note and "--no-fast-paths" in note


def test_what_is_named_is_what_is_on() -> None:
    assert turn_off(True, "plain", "float32") == "--no-fast-paths"
    assert turn_off(True, "compiled", "bfloat16") == "--generation plain --no-fast-paths --dtype float32"


def test_experts_that_rounding_turns_have_a_wider_bound() -> None:
    from transformers import LlamaConfig, MixtralConfig

    assert bound_of(LlamaConfig(), "float32") == BOUND["float32"]
    assert bound_of(MixtralConfig(num_local_experts=4), "float32") == 1.0
    assert bound_of(LlamaConfig(), "bfloat16") == 1.0

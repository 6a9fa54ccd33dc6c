"""Times TorchRL's two GAE functions on the CPU at (T, N) = (128, 64), (2048, 8) and (128, 16384).

Usage: benchmarks/peers/.envs/torchrl/bin/python benchmarks/peers/torchrl_gae.py [--seconds 3] [--threads 1]

About one step in 200 ends an episode, half of these by termination. `vec` is
`vec_generalized_advantage_estimate` (padding and a convolution, its fast path for scalar gamma and lambda),
`loop` is `generalized_advantage_estimate`; both take float32 tensors [N, T, 1], TorchRL's own layout.
`loop_time_major` is the loop over [T, N, 1] with time_dim=0, where each step's slice is contiguous. All are
checked against each other; `best_us` is the fastest.
"""

from functools import partial

from gae_times import GAMMA, LAMBDA, SHAPES_TN, median_us, options_of, report


def main() -> None:
    options = options_of(__doc__)
    import torch
    from torchrl.objectives.value import functional

    torch.set_num_threads(options.threads)
    rows: list[dict[str, object]] = []
    for num_steps, num_envs in SHAPES_TN:
        generator = torch.Generator().manual_seed(0)
        shape = (num_envs, num_steps, 1)
        reward, value, next_value = (torch.randn(shape, generator=generator) for _ in range(3))
        done = torch.rand(shape, generator=generator) < 1 / 200
        terminated = done & (torch.rand(shape, generator=generator) < 0.5)
        batch_major = (value, next_value, reward, done, terminated)
        time_major = tuple(x.transpose(0, 1).contiguous() for x in batch_major)
        vec = partial(functional.vec_generalized_advantage_estimate, GAMMA, LAMBDA)
        loop = partial(functional.generalized_advantage_estimate, GAMMA, LAMBDA)
        calls = {
            "vec": partial(vec, *batch_major),
            "loop": partial(loop, *batch_major),
            "loop_time_major": partial(loop, *time_major, time_dim=0),
        }
        # The convolution drops factors below 1e-7 of the geometric series, so they do not agree to the bit.
        advantage = calls["loop"]()[0]
        torch.testing.assert_close(calls["vec"]()[0], advantage, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(calls["loop_time_major"]()[0].transpose(0, 1), advantage)
        row: dict[str, object] = {"T": num_steps, "N": num_envs}
        medians_us: dict[str, float] = {}
        for name, call in calls.items():
            medians_us[name], repeats = median_us(call, options.seconds)
            row |= {f"{name}_us": round(medians_us[name], 1), f"{name}_repeats": repeats}
        best = min(medians_us, key=lambda name: medians_us[name])
        rows.append(row | {"best": best, "best_us": round(medians_us[best], 1)})
    report("torchrl", rows, options.threads, "[N, T, 1] float32")


if __name__ == "__main__":
    main()

"""Times PufferLib's advantage kernel (C, on the CPU) at (T, N) = (128, 64), (2048, 8) and (128, 16384).

Usage: benchmarks/peers/.envs/pufferlib/bin/python benchmarks/peers/pufferlib_gae.py [--seconds 3] [--threads 1]

About one step in 200 ends an episode. `compute_puff_advantage` takes float32 tensors [N, T], PufferLib's own layout,
and computes GAE where its importance ratios are 1. It knows one kind of episode end, reads the reward and the flag
that came with the next step, and leaves the last step of each row out; a loop that does just that checks it.
"""

import os
from pathlib import Path

from gae_times import GAMMA, LAMBDA, SHAPES_TN, median_us, options_of, report


def main() -> None:
    options = options_of(__doc__)
    os.chdir(Path(__file__).parent / ".envs")  # PufferLib links its resources into the current folder
    import torch
    from pufferlib import _C  # noqa: F401  (registers the operator)

    torch.set_num_threads(options.threads)
    rows: list[dict[str, object]] = []
    for num_steps, num_envs in SHAPES_TN:
        generator = torch.Generator().manual_seed(0)
        shape = (num_envs, num_steps)
        reward, value = (torch.randn(shape, generator=generator) for _ in range(2))
        done = (torch.rand(shape, generator=generator) < 1 / 200).float()
        ratio, advantage = torch.ones(shape), torch.zeros(shape)

        def call(columns: tuple[torch.Tensor, ...] = (value, reward, done, ratio, advantage)) -> None:
            torch.ops.pufferlib.compute_puff_advantage(*columns, GAMMA, LAMBDA, 1.0, 1.0)

        call()
        later, expected = torch.zeros(num_envs), torch.zeros(shape)
        for t in reversed(range(num_steps - 1)):
            alive = 1 - done[:, t + 1]
            delta = reward[:, t + 1] + GAMMA * value[:, t + 1] * alive - value[:, t]
            expected[:, t] = later = delta + GAMMA * LAMBDA * later * alive
        torch.testing.assert_close(advantage, expected, rtol=1e-4, atol=1e-4)
        us, repeats = median_us(call, options.seconds)
        rows.append({"T": num_steps, "N": num_envs, "best": "C", "best_us": round(us, 1), "repeats": repeats})
    report("pufferlib", rows, options.threads, "[N, T] float32")


if __name__ == "__main__":
    main()

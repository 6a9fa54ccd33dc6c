"""`generate()` of transformers, sampling: response tokens a second.

Usage: .venv/bin/python benchmarks/peers/generate_speed.py [--threads 2] [--cache static]
"""

from __future__ import annotations

import torch
from rlhf_work import NEW, PAD, RESPONSES, arguments, causal, prompts, tell
from speed import Window


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = causal().eval()
    data = prompts(64 * RESPONSES)
    window = Window(options.warmup, options.seconds)
    more = {"cache_implementation": "static"} if options.cache == "static" else {}
    turn, over = 0, False
    while not over:
        first = turn % 64 * RESPONSES
        ids = torch.tensor(data[first : first + RESPONSES])
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, max_new_tokens=NEW,
                eos_token_id=None, pad_token_id=PAD, **more,
            )  # fmt: skip
        turn += 1
        over = window.boundary(turn * RESPONSES * NEW)
    tell(f"transformers generate(), {options.cache} cache", "transformers", window, options)


if __name__ == "__main__":
    main()

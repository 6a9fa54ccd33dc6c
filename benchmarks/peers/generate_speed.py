"""`generate()` of transformers, sampling: response tokens a second.

Usage: .venv/bin/python benchmarks/peers/generate_speed.py [--threads 2] [--cache static [--compile]]
"""

from __future__ import annotations

import torch
from rlhf_work import NEW, PAD, RESPONSES, arguments, causal, prompts, tell
from speed import Window


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic")
    parser.add_argument(
        "--compile", action="store_true", help="the model's forward by torch.compile, with a static cache"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = causal().eval()
    if options.compile:
        model.forward = torch.compile(model.forward)
    data = prompts(64 * RESPONSES)
    more = {"cache_implementation": "static"} if options.cache == "static" else {}

    def generate(turn: int) -> None:
        first = turn % 64 * RESPONSES
        ids = torch.tensor(data[first : first + RESPONSES])
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, max_new_tokens=NEW,
                eos_token_id=None, pad_token_id=PAD, **more,
            )  # fmt: skip

    generate(0)  # where something is compiled, now
    window = Window(options.warmup, options.seconds)
    turn, over = 0, False
    while not over:
        generate(turn)
        turn += 1
        over = window.boundary(turn * RESPONSES * NEW)
    how = f"{options.cache} cache" + (", compiled" if options.compile else "")
    tell(f"transformers generate(), {how}", "transformers", window, options)


if __name__ == "__main__":
    main()

"""The autopsy of a run's throughput: where each second went, what bounds, and what a change would give.

measure.py     a short session of `distrl train`, its spans with their moments
timeline.py    every process on one clock; each wait cut and named by whom it was for
path.py        the chain of segments that an iteration's wall time consists of
bound.py       the bound, as one sentence
probe.py       tiny runs in this process: what a cost is made of, fixed and per row
model.py       an iteration's time as a function of the configuration
prescribe.py   what each change would give, ranked
search.py      `--try` and `--tune`: predicted beside measured
roles.py       the timeline and the longest chain of RLHF's roles
trace.py       the Chrome trace; page.py, terminal.py  what a person sees
"""

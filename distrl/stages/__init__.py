"""The stages of RLHF as sessions: configuration, run directory, checkpoints, summary. The parts are in `distrl.rlhf`."""

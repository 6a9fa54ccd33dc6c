"""Native environments: dynamics in Numba, stepped by the batch without Python. `docs/native_env.md` shows how to write one.

protocol.py   NativeEnv: spaces, time limit, and the nopython reset, step and observe of one environment
kernels.py    from these the loops over a batch
vector.py     NativeVectorEnv: a Gymnasium vector env over any native env
choice.py     which env ids are built in, and which backend a configuration gets
cartpole.py … the built-in five, step-identical to Gymnasium's
"""

from distrl.envs.native.protocol import NativeEnv
from distrl.envs.native.vector import NativeVectorEnv
from distrl.maths.random_kernels import integer, normal, random, uniform

__all__ = ["NativeEnv", "NativeVectorEnv", "integer", "normal", "random", "uniform"]

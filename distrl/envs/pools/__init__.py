"""Env pools: envs that a C++ library steps on threads of its own, `--env-backend ale|envpool`. docs/backends.md tells how
they differ from Gymnasium's.

protocol.py   Pool: what a library has to offer
vector.py     PoolVectorEnv: autoreset, time limit, lost lives and exact restores over any pool
ale.py        ALE's own AtariVectorEnv
envpool.py    EnvPool
choice.py     which env ids and settings each one serves
"""

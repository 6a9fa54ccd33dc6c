"""Joining a Ray cluster or starting one here, and what a failure of Ray's means in a line."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayActorError, RayError, RayTaskError

from distrl.errors import BadInput, RunFailed, cause

CHAINED = "The above exception was the direct cause of the following exception"  # Python's own words


def cluster_address(given: str | None) -> str | None:
    """Of the cluster to join: the one given, else RAY_ADDRESS's, which `ray job submit` sets. None: start one here."""
    return given or os.environ.get("RAY_ADDRESS") or None


def connect(address: str | None, num_cpus: int) -> bool:
    """Join the cluster meant (`cluster_address`), or start one here with `num_cpus` at least. Returns whether it was started.

    BadInput where the cluster cannot be reached, RunFailed where Ray's processes do not come up here. Whether there is
    room is for the caller to see.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = cluster_address(address)
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": True,
        "ignore_reinit_error": False,
    }
    if ray.is_initialized():
        raise BadInput(
            "Ray already runs in this process: call ray.shutdown() first, or run in-process (--workers 0; for RLHF --placement in-process)"
        )
    if address is None:
        cpus = max(num_cpus, os.cpu_count() or 1)
        try:
            with _own_signal_handlers():
                # "local": without it, Ray joins any cluster that `ray start` left on this machine
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises no narrower one where its processes do not come up in time
            raise RunFailed(f"Ray did not start on this machine: {first_line(error)}") from error
    else:
        _require_listener(address)
        try:
            with _own_signal_handlers():
                ray.init(address=address, **quiet)
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            raise BadInput(f"--address {address}: {_why_not_joined(error)}") from error
    return address is None


def nodes() -> list[dict[str, float]]:
    """What each node of the cluster has in all, in use or not: {"CPU": 4.0, ...}."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def nodes_at(address: str) -> list[dict[str, float]]:
    """`nodes` of the cluster there, which is joined for it and left. BadInput where it cannot be reached."""
    connect(address, 0)
    try:
        return nodes()
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """BadInput where nothing listens at host:port: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():
        return  # `auto`, or a client's address: Ray knows how to find them
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except OSError as error:
        raise BadInput(
            f"--address {address}: no Ray cluster answers there: {error.strerror or error}; is the head up?"
        ) from error


def _why_not_joined(error: BaseException) -> str:
    cause: BaseException | None = error
    # Ray keeps a refused token as a traceback's text inside a RuntimeError, the cause of a ConnectionError
    while cause is not None and AuthenticationError.__name__ not in f"{type(cause).__name__} {cause}":
        cause = cause.__cause__
    if cause is None:
        return f"no Ray cluster answers there: {first_line(error)}"
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    if os.environ.get("RAY_AUTH_TOKEN"):
        token = "the value of RAY_AUTH_TOKEN"
    else:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        found = "" if path.is_file() and path.stat().st_size else ", which is empty or not there"
        token = f"the file {path}{found} (RAY_AUTH_TOKEN_PATH names another)"
    return (
        f"the Ray cluster refuses this process's token: RAY_AUTH_MODE is {mode} and the token would be {token}; "
        "export RAY_AUTH_MODE=token and give the cluster's own token"
    )


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray puts handlers of its own on SIGTERM, in Python and in C++, which would end the driver without a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def failed_to_start(who: str, error: RayActorError) -> RunFailed:
    """What the constructor in the worker raised, in a line; `error` holds the traceback."""
    return RunFailed(f"{who} could not start: {plain(str(error)).splitlines()[-1].strip()}")


def root_cause(error: RayTaskError, what: str = "a worker failed") -> RunFailed | BadInput:
    """Our own errors as they were raised, any other as RunFailed in a line.

    `error`, which holds the worker's traceback, is its cause where other code than ours is behind it.
    """
    raised = error.cause
    if isinstance(raised, RunFailed | BadInput):
        found: RunFailed | BadInput = type(raised)(str(raised))
        behind = CHAINED in str(error)
    else:
        # its text: Ray raises a class of both kinds, which has no field of its own but the cause
        found, behind = RunFailed(f"{what}: {cause(raised)}"), True
    if behind:
        found.__cause__ = error
    return found


def plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()


def first_line(error: BaseException) -> str:
    """The first line of what it says that is not blank."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

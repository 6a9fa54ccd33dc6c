"""Kept machine code is not read once a file beside it has changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import distrl

CALLED = "from distrl.nopython import kernel\n@kernel()\ndef inner(x):\n    return x + {}\n"
CALLS = "from distrl.nopython import kernel\nfrom inner import inner\n@kernel()\ndef outer(x):\n    return inner(x)\n"
RUN = """
import sys
from pathlib import Path
import distrl.nopython
distrl.nopython.__file__ = sys.argv[1] + "/nopython.py"  # whose `maths` is this test's
sys.path.insert(0, sys.argv[1] + "/maths")
from outer import outer
print(outer(1), sum(outer.stats.cache_hits.values()))
"""


def run(folder: Path) -> list[str]:
    command = [sys.executable, "-c", RUN, str(folder)]
    root = Path(str(distrl.__file__)).parent.parent
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()


def test_a_kernel_is_kept_until_what_it_calls_changes(tmp_path):
    maths = tmp_path / "maths"
    maths.mkdir()
    (maths / "outer.py").write_text(CALLS)
    (maths / "inner.py").write_text(CALLED.format(10))
    assert run(tmp_path) == ["11", "0"]
    assert run(tmp_path) == ["11", "1"], "kept"
    (maths / "inner.py").write_text(CALLED.format(20))
    assert run(tmp_path) == ["21", "0"], "outer.py is as it was, and yet made anew"

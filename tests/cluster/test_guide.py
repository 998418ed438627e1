"""The blocks of docs/guides/at-scale.md, as a user runs them: a store, a prediction that is killed, its table."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guides" / "at-scale.md").read_text(encoding="utf-8")
[MANY] = re.search(r"m2f( predict .*)table --on ray", PAGE.replace("\\\n", " ")).groups()
COMPARED = """
import fsspec
store = fsspec.filesystem("s3")
one, table = ({name.partition(f"/{place}/")[2]: store.cat(name) for name in store.find(f"store/{place}")}
              for place in ("one", "table"))
for own in (one, table):
    for name in [name for name in own if name.startswith(".predict/") or name == "predictions.json"]:
        del own[name]  # clocks
assert len(one) == 4 and one == table, [one.keys(), table.keys()]
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_blocks_of_the_guide_run_and_give_the_bytes_of_one_process(tmp_path):
    for package in ("ray", "moto.server", "s3fs", "pandas", "pyarrow"):
        pytest.importorskip(package, reason=f"needs {package}")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    parts = [text if kind == "bash" else f"python - <<'END'\n{text}END\n" for kind, text in blocks]
    parts += [f"m2f --threads 1 {MANY}one", f"python - <<'END'{COMPARED}END\n"]
    script = "\n".join(["set -e", "trap 'kill $(jobs -p)' EXIT", *parts])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        script = script.replace("5000", str(free.getsockname()[1]))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "m2f").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m m2f_cli "$@"\n')
    (tmp_path / "bin" / "m2f").chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "M2F_HOME": str(tmp_path / "home"), "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "[300 rows x 4 columns]" in done.stdout
    for number in range(3):
        photo = Image.open(tmp_path / f"row-{number:03}.png")
        assert photo.size == (96, 64) and len(np.unique(np.asarray(photo))) > 10

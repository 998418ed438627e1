"""The blocks of docs/guides/at-scale.md, as a user runs them: a store, a prediction that is killed, its table."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.ray_clusters import end_session, free_port
from PIL import Image

FLAGS = re.MULTILINE | re.DOTALL
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guides" / "at-scale.md").read_text(encoding="utf-8")
[MANY] = re.search(r"m2f( predict .*)table --on ray", PAGE.replace("\\\n", " ")).groups()
COMPARED = """
import fsspec
store = fsspec.filesystem("s3")
one, table, cluster = (
    {name.partition(f"/{place}/")[2]: store.cat(name) for name in store.find(f"store/{place}")}
    for place in ("one", "table", "cluster")
)
for own in (one, table, cluster):
    for name in [name for name in own if name.startswith(".predict/") or name == "predictions.json"]:
        del own[name]  # clocks
assert len(one) == 4 and one == table == cluster, [one.keys(), table.keys(), cluster.keys()]
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_blocks_of_the_guide_run_and_give_the_bytes_of_one_process(tmp_path):
    for package in ("ray", "moto.server", "s3fs", "pandas", "pyarrow"):
        pytest.importorskip(package, reason=f"needs {package}")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, FLAGS)
    parts = [text if kind == "bash" else f"python - <<'END'\n{text}END\n" for kind, text in blocks]
    parts += [f"m2f --threads 1 {MANY}one", f"python - <<'END'{COMPARED}END\n"]
    script = "\n".join(["set -e", *parts]).replace("6379", str(free_port()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        script = script.replace("5000", str(free.getsockname()[1]))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "m2f").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m m2f_cli "$@"\n')
    (tmp_path / "bin" / "m2f").chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "M2F_HOME": str(tmp_path / "home"), "NO_COLOR": "1"}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:  # paths of sockets are short
        own |= {"HOME": short, "RAY_TMPDIR": short}
        with (tmp_path / "said").open("w+") as said:  # no pipe, which the processes in the background would keep open
            done = subprocess.Popen(
                ["bash", "-c", script],
                cwd=tmp_path,
                env={**os.environ, **own},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                done.wait(1000)
            finally:
                end_session(done)
                text = (tmp_path / "said").read_text()
    assert done.returncode == 0, text[-4000:]
    assert "[300 rows x 4 columns]" in text
    for number in range(3):
        photo = Image.open(tmp_path / f"row-{number:03}.png")
        assert photo.size == (96, 64) and len(np.unique(np.asarray(photo))) > 10


def test_manifests_and_scripts_of_the_guides_can_be_parsed():
    """Nobody has started them: neither Kubernetes nor Slurm is here."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "guides").glob("*.md"))]
    titled = [found for page in pages for found in re.findall(r"^```(yaml|sh) title=[^\n]*\n(.*?)^```$", page, FLAGS)]
    manifests = [each for kind, text in titled if kind == "yaml" for each in yaml.safe_load_all(text)]
    assert {manifest["kind"] for manifest in manifests} >= {"Job", "RayJob"}
    [ray] = [manifest["spec"] for manifest in manifests if manifest["kind"] == "RayJob"]
    groups = [ray["rayClusterSpec"]["headGroupSpec"], *ray["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    scripts = [text for kind, text in titled if kind == "sh" and text.startswith("#!/bin/bash")]
    assert len(scripts) >= 2 and all("#SBATCH" in script for script in scripts)
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr

"""Commands that compute nothing must start without importing torch or transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import write_stock

SCRIPT = """
import json, sys
from hybridize.__main__ import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "transformers"} & set(sys.modules))
print(json.dumps({"code": code, "heavy": heavy}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("startup") / "model"
    write_stock(directory, "llama")
    return directory


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", "MODEL"], 0),
        (["inspect", "MODEL", "--json"], 0),
        (["verify", "MODEL"], 0),
        (["convert", "MODEL", "-o", "OUT", "--keep", "1", "--dry-run"], 0),
        (["convert", "MODEL", "-o", "OUT", "--keep", "99"], 2),
        (["convert", "MODEL", "-o", "OUT", "--format", "llama"], 2),
        (["convert", "MODEL", "-o", "MODEL"], 2),
        (["convert", "MODEL", "-o", "OUT", "--d-state", "0"], 2),
        (["convert", "OUT", "-o", "OUT"], 2),
        (["quantize", "MODEL", "-o", "OUT", "--scheme", "fp8-block", "--dry-run"], 2),
        (["quantize", "MODEL", "-o", "OUT", "--dry-run"], 0),
        (["quantize", "MODEL", "-o", "OUT", "--keep-bf16", "x"], 2),
        (["prune", "MODEL", "-o", "OUT", "--params", "x"], 2),
        (["--help"], 0),
        (["convert", "--help"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_neither_torch_nor_transformers_is_imported(tmp_path, model, arguments, code):
    names = {"MODEL": str(model), "OUT": str(tmp_path / "out")}
    words = [names.get(word, word) for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, timeout=120
    )
    found = json.loads(done.stderr.splitlines()[-1])
    assert found == {"code": code, "heavy": []}, done.stderr
    assert not (tmp_path / "out").exists()


def test_the_check_notices_heavy_imports():
    script = SCRIPT.replace("code = main(sys.argv[1:])", "import torch; code = 0")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert json.loads(done.stderr.splitlines()[-1])["heavy"] == ["torch"]

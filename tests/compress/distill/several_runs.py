"""Run command lines, one after the other, in a process that torchrun has started.

The argument is a JSON list of runs. A run has ``arguments``, and ``killed_after``: the process
kills itself after this many steps, or null. One start of torchrun serves several runs, because
importing torch takes most of the time. ``read-RANK.json`` in the working directory gets the bytes
of tensors that each run has read.
"""

import json
import os
import signal
import sys
from pathlib import Path

from hybridize.__main__ import main
from hybridize.checkpoints.reader import CheckpointReader
from hybridize.compress.distill.trainer import Trainer

read_into, train_step = CheckpointReader._read_into, Trainer._train_step
counts: list[int] = []
steps = 0


def count_bytes(reader, buffer, location):
    counts[-1] += len(buffer)
    read_into(reader, buffer, location)


CheckpointReader._read_into = count_bytes
for run in json.loads(sys.argv[1]):
    counts.append(0)
    steps = 0

    def train_and_count(trainer, run=run):
        global steps
        train_step(trainer)
        steps += 1
        if steps == run["killed_after"]:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer._train_step = train_and_count
    code = main(run["arguments"])
    Path(f"read-{os.environ['RANK']}.json").write_text(json.dumps(counts))
    if code:
        sys.exit(code)

"""Run command lines, one after the other, in a process that torchrun has started.

The argument is a JSON list of runs. A run has ``arguments``, and ``signal``: null, or the number of
a signal, the number of steps after which processes send it to themselves, and their ranks. One
start of torchrun serves several runs, because importing torch takes most of the time.
``read-RANK.json`` in the working directory gets the bytes of tensors that each run has read.
"""

import json
import os
import sys
from pathlib import Path

from hybridize.__main__ import main
from hybridize.checkpoints.reader import CheckpointReader
from hybridize.compress.distill.trainer import Trainer

RANK = int(os.environ["RANK"])

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

    def train_and_count(trainer, sent=run["signal"]):
        global steps
        train_step(trainer)
        steps += 1
        if sent is not None and steps == sent[1] and RANK in sent[2]:
            os.kill(os.getpid(), sent[0])

    Trainer._train_step = train_and_count
    code = main(run["arguments"])
    Path(f"read-{RANK}.json").write_text(json.dumps(counts))
    if code:
        sys.exit(code)

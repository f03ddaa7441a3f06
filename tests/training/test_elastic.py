"""torchrun restarts a training whose process is killed, and it ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from rdfa.run_dir import RunDirectory, load_training_state, load_weights
from tests.training.group import exit_code, run_group
from tests.training.tiny import flags, make_dataset, metrics

REPOSITORY = Path(__file__).parents[2]


def tiny(dataset, run_dir):
    params = ("Training.max_epochs = 4", "Training.eval_start_epoch = 4", "Training.checkpoint_every = 1")
    return flags(dataset, run_dir, *params, "Loader.batch_size = 3", "Training.device = 'cpu'")


def workers(process):
    """Process ids of the training processes that torchrun runs, by rank."""
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    return sorted(int(pid) for path in children for pid in path.read_text().split())


def test_killed_process_is_restarted(tmp_path):
    dataset, run_dir = make_dataset(tmp_path / "data"), tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=1"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*torchrun, "train.py", *tiny(dataset, run_dir)],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        latest = run_dir / "checkpoints" / "latest"
        while process.poll() is None and not (latest.is_file() and latest.read_text() >= "step_00000006"):
            time.sleep(0.005)
        os.kill(workers(process)[-1], signal.SIGKILL)
        # While torchrun starts again: the same without an interruption.
        assert run_group(2, tmp_path / "group", exit_code, tiny(dataset, tmp_path / "whole")) == [0, 0]
        code = process.wait(timeout=120)
    text = (tmp_path / "log").read_text()
    assert code == 0, text
    assert text.count("continuing ") == 1, text  # at the last checkpoint, told by the main process alone
    ours, wanted = (RunDirectory(path).checkpoint("latest") for path in (run_dir, tmp_path / "whole"))
    assert ours.name == wanted.name == "step_00000016"
    for kind in ("model", "ema"):
        a, b = load_weights(ours, kind), load_weights(wanted, kind)
        assert [name for name in b if not torch.equal(a[name], b[name])] == []
    a, b = load_training_state(ours), load_training_state(wanted)
    assert torch.equal(a["rng"]["torch"], b["rng"]["torch"]) and a["best_mAP"] == b["best_mAP"]
    assert metrics(run_dir) == metrics(tmp_path / "whole")

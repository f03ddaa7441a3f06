"""Detection over many videos: killed and started again, and over a Ray cluster, it writes the same file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rdfa import cli, detect
from tests.test_detect import CHANNELS, write_run

VIDEOS = 2000


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), "PostProcessing.max_seg_num = 5", "StemModule.recurrent = 1")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Videos of 1 to 150 clips: three padded lengths, and many of the first."""
    folder = tmp_path_factory.mktemp("features")
    random = np.random.RandomState(0)
    for i in range(VIDEOS):
        length = random.randint(1, 151 if i % 10 == 0 else 65)
        np.save(folder / f"video_{i:04}.npy", random.standard_normal((length, CHANNELS)).astype(np.float32))
    return folder


def command(run_dir, features, output, *flags):
    return ["--run_dir", run_dir, "--features", features, "--fps", 10, "--output", output, "--batch_size", 16, *flags]


@pytest.fixture(scope="module")
def undisturbed(run_dir, features, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "p.json"
    detect.main(list(map(str, command(run_dir, features, output))))
    return output.read_bytes()


def start(*flags):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "rdfa.detect", *map(str, flags)], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_killed_three_times_it_writes_the_file_of_an_undisturbed_run(run_dir, features, undisturbed, tmp_path):
    output, journal = tmp_path / "p.json", tmp_path / "p.json.partial"
    finished = [0]
    for _ in range(3):
        before = journal.stat().st_size if journal.exists() else 0
        process = start(*command(run_dir, features, output))
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > before + 100_000):
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        finished.append(int(said.split(f"of {VIDEOS} videos are finished")[0].split()[-1]) if "finished" in said else 0)
        assert not output.exists()
    assert finished[1] == 0 < finished[2] < finished[3] < VIDEOS
    process = start(*command(run_dir, features, output))
    assert process.wait() == 0
    assert output.read_bytes() == undisturbed
    assert not journal.exists()


def interrupt(run_dir, features, output, monkeypatch, batches=5):
    """Detect until a few batches are done, in this process."""
    append = detect.Journal.append

    def stop(self, key, rows):
        append(self, key, rows)
        stop.left -= 1
        if not stop.left:
            raise KeyboardInterrupt

    stop.left = batches
    with monkeypatch.context() as patch:
        patch.setattr(detect.Journal, "append", stop)
        assert cli.run(detect.main, list(map(str, command(run_dir, features, output)))) == 130


@pytest.fixture
def few(features, tmp_path):
    """100 of the videos."""
    folder = tmp_path / "few"
    folder.mkdir()
    for path in sorted(features.iterdir())[:100]:
        os.link(path, folder / path.name)
    return folder


def test_spoilt_ends_and_changed_files_are_computed_again(run_dir, few, tmp_path, monkeypatch, capsys):
    output, expected = tmp_path / "p.json", tmp_path / "expected.json"
    interrupt(run_dir, few, output, monkeypatch)
    journal = tmp_path / "p.json.partial"
    journal.write_bytes(journal.read_bytes()[:-7])
    # The longest videos come first, so this one is finished.
    changed = max(few.iterdir(), key=lambda path: path.stat().st_size)
    array = np.load(changed)
    changed.unlink()
    np.save(changed, array[::-1])
    (few / "video_0099.npy").unlink()
    capsys.readouterr()
    detect.main(list(map(str, command(run_dir, few, output))))
    # Five batches of three lengths; the change spoils one, the torn end another.
    said = capsys.readouterr().err
    assert 0 < int(said.split(" of 99 videos")[0].split()[-1]) < 80
    detect.main(list(map(str, command(run_dir, few, expected))))
    assert output.read_bytes() == expected.read_bytes()


def test_unfinished_work_of_other_weights_is_refused_and_kept(run_dir, few, tmp_path, monkeypatch, capsys):
    output = tmp_path / "p.json"
    interrupt(run_dir, few, output, monkeypatch)
    content = (tmp_path / "p.json.partial").read_bytes()
    other = write_run(tmp_path / "other", "PostProcessing.max_seg_num = 6", "StemModule.recurrent = 1")
    assert cli.run(detect.main, list(map(str, command(other, few, output)))) == 2
    assert "unfinished detections of another run (other configuration)" in capsys.readouterr().err
    assert (tmp_path / "p.json.partial").read_bytes() == content


def test_a_journal_in_which_nothing_is_finished_is_nobody_s_work(run_dir, few, tmp_path):
    with detect.Journal(tmp_path / "p.json.partial", {"weights": "others"}):
        pass
    detect.main(list(map(str, command(run_dir, few, tmp_path / "p.json"))))
    assert len(json.loads((tmp_path / "p.json").read_text())["results"]) == 100


def test_a_file_of_something_else_and_a_second_process_are_refused(run_dir, few, tmp_path, capsys):
    output = tmp_path / "p.json"
    (tmp_path / "p.json.partial").write_text("mine")
    flags = list(map(str, command(run_dir, few, output)))
    assert cli.run(detect.main, flags) == 2
    assert "holds no unfinished detections" in capsys.readouterr().err
    assert (tmp_path / "p.json.partial").read_text() == "mine"
    (tmp_path / "p.json.partial").unlink()
    with detect.Journal(tmp_path / "p.json.partial", {}):
        assert cli.run(detect.main, flags) == 2
    assert "another rdfa.detect writes the same --output" in capsys.readouterr().err


@pytest.fixture
def cluster():
    """Two nodes of one processor, in processes of this machine."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'rdfa-s6[cluster]'")
    pytest.importorskip("ray.data", reason="needs Ray Data: pip install 'rdfa-s6[cluster]'")
    import ray
    from ray.cluster_utils import Cluster

    root = str(Path(__file__).parent.parent)
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "env_vars": {"PYTHONPATH": root}}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes.add_node(**node)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_a_ray_cluster_of_two_nodes_writes_the_same_file(
    cluster, run_dir, features, undisturbed, tmp_path, capsys, threads
):
    import ray

    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    output = tmp_path / "p.json"
    detect.main(list(map(str, command(run_dir, features, output, "--engine", "ray"))))
    assert output.read_bytes() == undisturbed
    threads(2)
    assert cli.run(detect.main, list(map(str, command(run_dir, features, output, "--engine", "ray")))) == 2
    assert "no machine of the Ray cluster has 2 processors" in capsys.readouterr().err
    threads(1)
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    np.save(spoilt / "a.npy", np.full((3, CHANNELS), np.nan, np.float32))
    flags = command(run_dir, spoilt, tmp_path / "q.json", "--engine", "ray")
    assert cli.run(detect.main, list(map(str, flags))) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "a.npy" in errors[0] and "not finite" in errors[0]


def test_without_ray_the_extra_is_named(run_dir, few, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    flags = command(run_dir, few, tmp_path / "p.json", "--engine", "ray")
    assert cli.run(detect.main, list(map(str, flags))) == 2
    assert "pip install 'rdfa-s6[cluster]'" in capsys.readouterr().err


def test_the_file_is_json_in_the_order_of_the_data_set(undisturbed):
    results = json.loads(undisturbed)["results"]
    assert list(results) == [f"video_{i:04}" for i in range(VIDEOS)]

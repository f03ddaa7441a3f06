"""Buckets of recorded launches: on a CPU with a recording that calls the detector, and on a GPU."""

import pytest
import torch

from rdfa.modeling.folded_gpu import fold_for_gpu
from rdfa.runtime import cuda_graph
from rdfa.runtime.cuda_graph import WARM_UP, GraphedDetector
from tests.modeling import cases
from tests.runtime import replay


class Counted:
    """Outputs that tell the videos apart, and the batch sizes that it was called with."""

    def __init__(self):
        self.batches = []

    def __call__(self, features, mask):
        self.batches.append(len(features))
        return features.sum(1), mask


@pytest.fixture
def recorded(monkeypatch):
    """The sizes recorded, in their order."""
    sizes = []

    def record(detector, inputs):
        sizes.append((len(inputs[0]), inputs[0].shape[2]))
        return replay.record(detector, inputs)

    monkeypatch.setattr(cuda_graph, "record", record)
    return sizes


def check(graphed, batch, frames=8, seed=0):
    features, mask = cases.random_input([frames - i % 3 for i in range(batch)], frames, seed=seed)
    outputs = graphed(features, mask)
    assert torch.equal(outputs[0], features.sum(1)) and torch.equal(outputs[1], mask)
    return outputs


def test_recorded_at_the_second_call(recorded):
    graphed = GraphedDetector(Counted())
    for seed in range(4):
        check(graphed, 1, seed=seed)
        assert recorded == ([(1, 8)] if seed else [])


def test_batches_share_the_next_size(recorded):
    graphed = GraphedDetector(Counted())
    for batch in (3, 4, 3, 4, 1):
        check(graphed, batch, seed=batch)
    assert recorded == [(4, 8)]


def test_a_large_batch_is_taken_in_parts(recorded):
    detector = Counted()
    check(GraphedDetector(detector), 70)
    assert detector.batches == [32, *[32] * WARM_UP, 32, 6] and recorded == [(32, 8)]


def test_the_sizes_used_last_are_kept(recorded):
    graphed = GraphedDetector(Counted(), graphs=2)
    for frames in (8, 9, 8, 9, 8, 10, 10, 9, 8):
        check(graphed, 1, frames)
    assert recorded == [(1, 8), (1, 9), (1, 10), (1, 9), (1, 8)]


def test_results_stay_when_the_next_call_comes(recorded):
    graphed = GraphedDetector(Counted())
    check(graphed, 1)
    first = check(graphed, 1, seed=1)
    kept = [output.clone() for output in first]
    check(graphed, 1, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, kept))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_replayed_on_a_gpu():
    folded = fold_for_gpu(cases.tiny_detector().cuda())
    graphed = GraphedDetector(folded)
    for seed, valid in enumerate([[64, 40], [64, 40], [9, 64], [31], [12]]):
        inputs = [t.cuda() for t in cases.random_input(valid, 64, seed=seed)]
        for value, truth in zip(graphed(*inputs), folded(*inputs)):
            torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-5)
    assert len(graphed._graphs) == 2

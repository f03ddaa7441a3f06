"""The published order of operations computes what the detector computes."""

import torch

from benchmarks.published_order import PublishedOrder
from tests.modeling.cases import random_input, relative_l2, tiny_detector


def test_same_numbers():
    detector = tiny_detector()
    features, mask = random_input([64, 40], 64)
    with torch.inference_mode():
        outputs, expected = PublishedOrder(detector)(features, mask), detector(features, mask)
    assert torch.equal(outputs[2], expected[2])
    assert all(relative_l2(*pair) <= 1e-5 for pair in zip(outputs[:2], expected))

"""Launches every kernel once for each of six shapes; to be run under compute-sanitizer.

compute-sanitizer --tool memcheck python -m tests.ops.selective_scan.sanitized
"""

from ops.selective_scan import bidirectional, tiles
from tests.ops.selective_scan import cases

# Sequences, branches, channels, states, steps: single elements, odd ends, whole blocks, many states.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 3, 37),
    (1, 1, 32, 16, 256),
    (1, 2, 33, 16, 301),
    (1, 1, 8, 17, 64),
    (3, 1, 9, 2, 8),
]

if __name__ == "__main__":
    whole = tiles.segment
    for sizes in SHAPES:
        tensors, grad_y = cases.make_bidirectional(*sizes, device="cuda")
        for segment in (whole, lambda *sizes: 2):
            tiles.segment = segment
            _, states = bidirectional._forward_train(*tensors.values())
            bidirectional._backward(grad_y, *tensors.values(), states)

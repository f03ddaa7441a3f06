"""The folded detector for GPUs: on a CPU with plain operators in the place of its kernels, and on a GPU."""

import math

import pytest
import torch
from torch.nn import functional as F

from rdfa.errors import RunError
from rdfa.modeling import folded_gpu
from rdfa.modeling.detector import build_detector
from rdfa.runtime.cuda_graph import GraphedDetector
from tests.modeling import cases
from tests.ops.rows.plain import plain_average, plain_finish, plain_halve, plain_scans

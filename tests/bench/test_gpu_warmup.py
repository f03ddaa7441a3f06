"""Compiling ahead: which cases, and that no failure stops the benchmark."""

from concurrent.futures import BrokenExecutor, ThreadPoolExecutor

import pytest
import torch

from rdfa.bench import gpu_accuracy, gpu_cases, gpu_warmup
from rdfa.bench.gpu_cases import FusedCase
from rdfa.bench.gpu_providers import Stage
from rdfa.modeling.settings import ModelSettings


def test_lengths_are_shortened_and_keep_their_divisors():
    lengths = (18, 512, 2047, 2048, 2304, 4608, 65536)
    cases = [FusedCase("any", 1, 8, length, (4,), 16) for length in lengths]
    found = [case.length for case, _ in gpu_warmup.jobs(cases, [torch.float32])]
    assert found == [18, 512, 2047, 1024, 1280, 1536]  # 65536 needs what 2048 needs
    for length in lengths[4:]:
        assert length % 1024 == (1024 + length % 1024) % 1024


def test_equal_cases_are_one_job_per_dtype():
    work = gpu_warmup.jobs(gpu_cases.cases(ModelSettings(), (1, 4, 16), ()), [torch.float32, torch.bfloat16])
    # Seven layers at three batch sizes, and the powers of two: all but 1024 are 2048 again, and that is 1024 again.
    assert len(work) == len(set(work)) == 2 * (7 * 3 + 1) * 2
    assert {case.length for case, _ in gpu_warmup.jobs(gpu_accuracy.cases(8), [torch.half])} == {64, 512, 1280, 1536}


@pytest.fixture
def compiled(monkeypatch):
    """What was called, by a provider that fails for float32."""
    called = []

    def ours(case, mode, inputs):
        if inputs["u"].dtype == torch.float32:
            raise RuntimeError("no such instruction")
        return Stage((case.length, mode), called.append, dict, "")

    monkeypatch.setattr(gpu_warmup, "ours", ours)
    monkeypatch.setattr(FusedCase, "inputs", lambda case, device, dtype: {"u": torch.zeros(1, dtype=dtype)})
    return called


def test_both_modes_of_every_job_run_and_a_failure_is_told(compiled):
    case = FusedCase("any", 1, 8, 64, (4,), 16)
    lines = []
    gpu_warmup.run([(case, torch.bfloat16), (case, torch.float32)], 99, lines.append, pool=ThreadPoolExecutor)
    assert compiled == [(64, "forward"), (64, "backward")]
    assert lines == [
        "compiling the kernels of 2 cases in 2 processes, unless they are cached",
        "1 cases did not compile ahead: invalid: RuntimeError: no such instruction",
    ]


def test_processes_that_die_do_not_stop_the_benchmark(compiled):
    class Dead(ThreadPoolExecutor):
        def submit(self, *job):
            raise BrokenExecutor("a process died")

    lines = []
    gpu_warmup.run([(FusedCase("any", 1, 8, 64, (4,), 16), torch.half)], 1, lines.append, pool=Dead)
    assert lines[-1] == "1 cases did not compile ahead: invalid: BrokenExecutor: a process died"

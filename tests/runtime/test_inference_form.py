import torch

from rdfa.modeling.folded import FoldedDetector
from rdfa.runtime import inference_form
from rdfa.runtime.cuda_graph import GraphedDetector
from tests.modeling import cases


def test_on_a_cpu_it_is_folded():
    detector, inputs = cases.tiny_detector(), cases.random_input([32, 9], 32)
    form = inference_form.inference_form(detector)
    assert isinstance(form, FoldedDetector)
    with torch.no_grad():
        for value, truth in zip(form(*inputs), detector(*inputs)):
            torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-5)


def test_on_a_gpu_it_is_recorded_where_it_is_folded(monkeypatch):
    """As if on a GPU: of two detectors, one has a neck that no form is known for."""
    monkeypatch.setattr(inference_form.library, "runs_triton", lambda weight: True)
    on_meta = cases.tiny_detector().to("meta"), cases.tiny_detector(neck="FPN1D").to("meta")
    forms = [inference_form.inference_form(detector) for detector in on_meta]
    assert isinstance(forms[0], GraphedDetector) and forms[1] is on_meta[1]


def test_without_triton_it_is_the_detector():
    detector = cases.tiny_detector().to("meta")
    assert inference_form.inference_form(detector) is detector and not detector.training

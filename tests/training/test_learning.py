"""The point of it all: the detector of the demonstration learns what is planted in the synthetic videos."""

import time
from pathlib import Path

import pytest

from rdfa.config import load
from rdfa.data.synthetic import write_dataset
from rdfa.training.trainer import Trainer
from tests.training.tiny import metrics

DEMO = Path(__file__).parents[2] / "gin" / "demo.gin"


@pytest.mark.slow
def test_the_demonstration_learns(tmp_path):
    annotations = write_dataset(tmp_path / "data")
    paths = [f"Dataset.annotation_file = '{annotations}'", f"Dataset.feature_dir = '{annotations.parent / 'features'}'"]
    trainer = Trainer(load([DEMO], paths), tmp_path / "run")
    untrained = trainer.evaluator.evaluate(trainer.evaluator.detections(trainer.ema.module.eval()))
    assert untrained.average < 0.10
    start = time.process_time()
    trainer.run()
    assert time.process_time() - start < 240  # two minutes on two cores
    assert trainer.best_mAP > 0.80
    losses = [line["loss"] for line in metrics(tmp_path / "run", "train")]
    assert losses[-1] < 0.5 * losses[0]

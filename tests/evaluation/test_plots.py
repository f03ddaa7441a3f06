"""The time line: what is in the picture, not how it looks."""

from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from rdfa.errors import UsageError
from rdfa.evaluation.plots import MAX_CLASSES, draw_timeline

VIDEO = SimpleNamespace(
    id="v", duration=20.0, segments_N2=np.array([[1.0, 4.0], [10.0, 12.0]]), labels_N=np.array([0, 2])
)
NAMES = {0: "Diving", 2: "HighJump", 5: "LongJump"}


def detections(rows):
    table = np.array(rows, float).reshape(-1, 4)
    return SimpleNamespace(segments_N2=table[:, :2], scores_N=table[:, 2], labels_N=table[:, 3].astype(int))


@pytest.fixture
def drawn(monkeypatch):
    """Axes of the figures that are saved."""
    axes, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (axes.extend(self.axes), save(self, *a, **k)))
    return axes


def test_rows_bars_and_opacity(tmp_path, drawn):
    found = detections([(1.0, 3.5, 0.9, 0), (2.0, 3.0, 0.2, 0), (5.0, 6.0, 0.8, 5), (7.0, 8.0, 0.1, 7)])
    draw_timeline(tmp_path / "t.png", VIDEO, found, NAMES)
    (axes,) = drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Diving", "HighJump", "LongJump"]
    bars = {(bar.get_x(), round(bar.get_width(), 6)): bar for bar in axes.patches}
    assert set(bars) == {(1.0, 3.0), (10.0, 2.0), (1.0, 2.5), (2.0, 1.0), (5.0, 1.0)}
    assert [bars[key].get_alpha() for key in ((1.0, 2.5), (2.0, 1.0), (5.0, 1.0))] == [0.9, 0.2, 0.8]
    assert axes.get_xlim() == (0, 20)
    height, width = matplotlib.image.imread(tmp_path / "t.png").shape[:2]
    assert 900 < width < 1100 and height < width


@pytest.mark.parametrize("found", [None, detections([])])
def test_a_video_without_detections_or_ground_truth(tmp_path, drawn, found):
    draw_timeline(tmp_path / "a.png", VIDEO, found, NAMES)
    empty = SimpleNamespace(id="v", duration=None, segments_N2=np.empty((0, 2)), labels_N=np.empty(0, int))
    draw_timeline(tmp_path / "b.png", empty, found, NAMES)
    assert [len(axes.patches) for axes in drawn] == [2, 0]


def test_many_classes_fit(tmp_path, drawn):
    draw_timeline(tmp_path / "t.png", VIDEO, detections([(0, 1, 0.9, label) for label in range(30)]), NAMES)
    assert len(drawn[0].get_yticklabels()) == MAX_CLASSES


def test_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        draw_timeline(tmp_path / "file" / "t.png", VIDEO, None, NAMES)

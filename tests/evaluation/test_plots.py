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


def test_rows_bars_and_scores(tmp_path, drawn):
    # The last two are below half of the best score; the second overlaps the first, the third does not.
    rows = [(1.0, 3.5, 0.8, 0), (2.0, 3.0, 0.5, 0), (4.0, 9.0, 0.45, 0), (5.0, 6.0, 0.6, 5), (7.0, 8.0, 0.1, 7)]
    draw_timeline(tmp_path / "t.png", VIDEO, detections([*rows, (7.0, 8.0, 0.3, 2)]), NAMES)
    (axes,) = drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Diving", "HighJump", "LongJump"]
    bars = {(bar.get_x(), bar.get_x() + bar.get_width()): bar for bar in axes.patches}
    truth, found = [(1.0, 4.0), (10.0, 12.0)], [(1.0, 3.5), (2.0, 3.0), (4.0, 9.0), (5.0, 6.0)]
    assert set(bars) == {*truth, *found}
    first, second, third, other = (bars[key].get_y() for key in found)
    assert bars[truth[0]].get_y() < first == third < second < bars[truth[1]].get_y() < other
    assert bars[found[0]].get_alpha() > bars[found[3]].get_alpha() > bars[found[1]].get_alpha() > 0.3
    assert sorted(text.get_text() for text in axes.texts) == ["0.45", "0.50", "0.60", "0.80"]
    assert axes.get_xlim() == (0, 20)
    height, width = matplotlib.image.imread(tmp_path / "t.png").shape[:2]
    assert 900 < width < 1100 and height < width


@pytest.mark.parametrize("found", [None, detections([])])
def test_a_video_without_detections_or_ground_truth(tmp_path, drawn, found):
    draw_timeline(tmp_path / "a.png", VIDEO, found, NAMES)
    empty = SimpleNamespace(id="v", duration=None, segments_N2=np.empty((0, 2)), labels_N=np.empty(0, int))
    draw_timeline(tmp_path / "b.png", empty, found, NAMES)
    assert [len(axes.patches) for axes in drawn] == [2, 0]
    draw_timeline(tmp_path / "c.png", VIDEO, detections([(0, 1, 0.0, 0)]), NAMES)  # a best score of zero
    assert len(drawn[2].patches) == 3


def test_many_classes_fit(tmp_path, drawn):
    draw_timeline(tmp_path / "t.png", VIDEO, detections([(0, 1, 0.9, label) for label in range(30)]), NAMES)
    assert len(drawn[0].get_yticklabels()) == MAX_CLASSES


def test_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        draw_timeline(tmp_path / "file" / "t.png", VIDEO, None, NAMES)

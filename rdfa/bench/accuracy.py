"""Mean average precision of every backend on a set of videos: what the differences in its outputs come to."""

from collections.abc import Callable, Sequence

from rdfa.bench.candidates import Candidate, line
from rdfa.bench.results import Row
from rdfa.config import Config
from rdfa.evaluation.given_set import GivenSet, OpenedSet
from rdfa.inference.settings import PostProcessingSettings


def fill(
    rows: Sequence[Row],
    given: GivenSet,
    opened: Sequence[Candidate],
    settings: Config,
    post: PostProcessingSettings,
    class_names: Sequence[str],
    progress: Callable[[str], None],
) -> None:
    """The column `average_map` of all rows of a backend that has a valid one.

    Raises:
        UsageError: as `OpenedSet`.
    """
    videos = OpenedSet(given, settings)
    for candidate in opened:
        own = [r for r in rows if (r.backend, r.dtype) == (candidate.name, candidate.dtype) and r.valid]
        if not own:
            continue
        progress(f"{candidate.name}, {candidate.dtype}: mean average precision on {len(videos)} videos")
        try:
            average = videos.average_map(candidate.backend, post, class_names)
        except Exception as error:  # whatever a backend raises belongs in its rows
            for row in own:
                row.drop_speed(f"invalid: on the given set, raised {type(error).__name__}: {line(error)}")
            continue
        for row in own:
            row.average_map = average

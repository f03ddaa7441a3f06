"""Finding videos by name, and choosing those of a subset."""

from collections.abc import Collection

from rdfa.data.annotations import AnnotationSet, Video, canonical_subset, spellings
from rdfa.errors import UsageError
from rdfa.settings import nearest


def find_video(video_id: str, videos: Collection[str]) -> str | None:
    """The entry of `videos` that means `video_id`, with or without the prefix ``v_``."""
    return next((name for name in spellings(video_id) if name in videos), None)


def select_subset(annotations: AnnotationSet, subset: str | None) -> list[Video]:
    """The videos of `subset` (any spelling); all of them when it is None and the annotations have no more than one.

    Raises:
        UsageError: an unknown subset, or none given where there are several.
    """
    available = sorted({video.subset for video in annotations.videos.values()})
    if subset is None:
        if len(set(map(canonical_subset, available))) > 1:
            raise UsageError(f"the annotations have the subsets {', '.join(available)}: choose one with --subset")
        return list(annotations.videos.values())
    videos = annotations.subset(subset)
    if not videos:
        raise UsageError(f"--subset {subset!r} is not in the annotations: {nearest(subset, available)}")
    return videos

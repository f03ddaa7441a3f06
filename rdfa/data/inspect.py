"""What a data set is understood to be, what is missing, and what looks wrong with it, before hours of training.

    python -m rdfa.data.inspect --gin_file gin/activitynet.gin --annotations activity_net.v1-3.min.json \\
        --features activitynet_6b
    python -m rdfa.data.inspect --annotations thumos14.json --features rgb flow --gin_param "Dataset.feat_stride = 8"

reads every annotation and every feature file that training and evaluation would read, and exits with 1 if training
would fail. Without a gin file subsets, classes and channels are taken from the data, and the other settings are those
of THUMOS14.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rdfa import cli, config
from rdfa.config import Config
from rdfa.data.annotations import AnnotationSet, Video, canonical_subset, load_annotations, spellings
from rdfa.data.checks import FeatureCheck, Finding, check_annotations, some, suggest_names
from rdfa.data.dataset import FeatureDataset
from rdfa.data.features import FeatureFinder, list_entries
from rdfa.data.settings import DatasetSettings
from rdfa.errors import RunError, UsageError
from rdfa.inference.fusion import ClassScores
from rdfa.modeling.detector import build_generator


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    annotations = load_annotations(args.annotations)
    settings = _settings(args, annotations)
    dataset, known = settings.dataset, bool(args.gin_file)
    subsets = tuple(dict.fromkeys((dataset.train_subset, dataset.test_subset)))
    _print_annotations(annotations)
    print(
        f"training on {annotations.summary(dataset.train_subset)}; "
        f"evaluation on {annotations.summary(dataset.test_subset)}"
    )
    findings = list(check_annotations(annotations, subsets, dataset.num_classes if known else None))
    for subset in subsets:
        findings += _open(settings, annotations, subset)
    findings += _check_files(dataset, annotations, subsets)
    findings += _read_features(settings, annotations, subsets, known)
    findings += _check_class_scores(settings, annotations)
    _report(findings)


def _settings(args: argparse.Namespace, annotations: AnnotationSet) -> Config:
    params = [] if args.gin_file else _derived(annotations)
    folders = args.features[0] if len(args.features) == 1 else args.features
    given = [f"Dataset.annotation_file = {args.annotations!r}", f"Dataset.feature_dir = {folders!r}"]
    return config.load(args.gin_file, [*params, *args.gin_param, *given])


def _derived(annotations: AnnotationSet) -> list[str]:
    """Bindings of what the data says itself: the subset to train on is the first of the usual ones that there is."""
    names = {canonical_subset(video.subset): video.subset for video in annotations.videos.values()}
    order = [name for name in ("training", "validation", "test") if name in names] or list(names)[:1]
    train, test = names[order[0]], names[order[1] if len(order) > 1 else order[0]]
    classes = max(annotations.class_names, default=0) + 1
    return [
        f"Dataset.train_subset = {train!r}",
        f"Dataset.test_subset = {test!r}",
        f"Dataset.num_classes = {classes}",
        f"PtTransformerClsHead.num_classes = {classes}",
    ]


def _open(settings: Config, annotations: AnnotationSet, subset: str) -> Iterator[Finding]:
    """What opening a subset, as training does it, ends in."""
    dataset = settings.dataset
    training = subset == dataset.train_subset
    try:
        opened = FeatureDataset(dataset, annotations, subset, training, None)
    except UsageError as error:
        yield Finding("error", str(error))
        return
    if opened.missing:
        total = len(opened.missing) + len(opened)
        yield Finding("warning", f"{len(opened.missing)} of {total} videos of subset {subset!r} have no features")
    if not training and not any(len(video.labels_N) for video in opened.videos):
        yield Finding("error", f"no video of subset {subset!r} has an action to evaluate against")


def _videos(dataset: DatasetSettings, annotations: AnnotationSet, subsets: Iterable[str]) -> dict[str, Video]:
    """The videos in use, with the frame rate in use."""
    excluded = {name for video_id in dataset.exclude for name in spellings(video_id)}
    videos = (video for subset in subsets for video in annotations.subset(subset))
    return {
        video.id: dataclasses.replace(video, fps=dataset.default_fps or video.fps)
        for video in videos
        if video.id not in excluded
    }


def _check_files(dataset: DatasetSettings, annotations: AnnotationSet, subsets: Iterable[str]) -> Iterator[Finding]:
    """Files that belong to no video, and how those that are missed may be called."""
    finder = FeatureFinder(dataset)
    found = {video_id: finder.find(video_id) for video_id in annotations.videos}
    used = {file.key or file.path.name for files in found.values() for file in files or ()}
    names = list_entries(Path(dataset.streams[0][0]))
    unknown = [name for name in names if name not in used and finder.video_id(name) is not None]
    if unknown:
        yield Finding("note", f"{len(unknown)} feature files belong to no video: {some(unknown)}")
    missing = [video_id for video_id in _videos(dataset, annotations, subsets) if found[video_id] is None]
    hint = suggest_names(missing, unknown)
    if hint:
        yield Finding("note", f"{len(missing)} videos have no features, but some files seem to be theirs: try {hint}")


def _read_features(
    settings: Config, annotations: AnnotationSet, subsets: Iterable[str], known_channels: bool
) -> Iterator[Finding]:
    longest, channels = build_generator(settings.model).max_frames, settings.model.embedding.input_c
    check = FeatureCheck(settings.dataset, channels if known_channels else None, longest)
    finder, videos = FeatureFinder(settings.dataset), _videos(settings.dataset, annotations, subsets).values()
    found = [(video, files) for video in videos if (files := finder.find(video.id)) is not None]
    console = Console(stderr=True)
    for video, files in track(found, "reading features", console=console, disable=not console.is_terminal):
        check.add(video, files)
    summary = check.summary
    if summary.clips:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.kinds.items())
        dims = " and ".join(str(channels) for channels in sorted(summary.channels))
        print(
            f"features of {len(summary.clips):,} videos: {kinds}; {dims} channels; "
            f"{min(summary.clips)} to {max(summary.clips)} clips, median {np.median(summary.clips):g}"
        )
    yield from check.findings()


def _check_class_scores(settings: Config, annotations: AnnotationSet) -> Iterator[Finding]:
    path, dataset = settings.post.ext_score_file, settings.dataset
    if not path:
        return
    finder = FeatureFinder(dataset)
    videos = [i for i in _videos(dataset, annotations, [dataset.test_subset]) if finder.find(i) is not None]
    try:
        scores = ClassScores(path, annotations.class_names, dataset.num_classes)
        scores.require(videos)
        for video_id in videos:
            scores[video_id]
    except (UsageError, RunError) as error:
        yield Finding("error", str(error))


def _print_annotations(annotations: AnnotationSet) -> None:
    table = Table(title=f"videos: {len(annotations.videos):,}, classes: {len(annotations.class_names)}")
    for column in ("subset", "videos", "actions", "seconds, median", "longest", "frames per second"):
        table.add_column(column, justify="left" if column == "subset" else "right")
    for subset in dict.fromkeys(video.subset for video in annotations.videos.values()):
        videos = [video for video in annotations.videos.values() if video.subset == subset]
        durations = [video.duration for video in videos if video.duration is not None]
        rates = [video.fps for video in videos if video.fps is not None]
        span = f"{min(rates):.4g} to {max(rates):.4g}" if rates else "unknown"
        if rates and len(rates) < len(videos):
            span += f", {len(videos) - len(rates)} unknown"
        seconds = (f"{np.median(durations):.1f}", f"{max(durations):.1f}") if durations else ("unknown", "unknown")
        actions = sum(len(video.labels_N) for video in videos)
        table.add_row(repr(subset), f"{len(videos):,}", f"{actions:,}", *seconds, span)
    Console().print(table)


def _report(findings: list[Finding]) -> None:
    for level in ("note", "warning", "error"):
        for finding in findings:
            if finding.level == level:
                print(f"{level}: {finding.text}")
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise RunError(f"training would fail: {errors} error{'s' if errors > 1 else ''} above")
    warnings = sum(finding.level == "warning" for finding in findings)
    print(f"training would run; {warnings} warning{'' if warnings == 1 else 's'}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m rdfa.data.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", required=True, metavar="A.json", help="annotation file, .json or .json.gz")
    parser.add_argument(
        "--features", required=True, nargs="+", metavar="DIR", help="folder or HDF5 file; several are joined per video"
    )
    config.add_flags(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(cli.run(main))

"""The result of a benchmark: one row per measurement, `results.json` and the schema it obeys."""

import dataclasses
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdfa.files import replacing

SCHEMA = Path(__file__).with_name("results.schema.json")


@dataclass
class Row:
    """One (backend, device, dtype, scenario, batch, time). A row that is not valid shows no speed.

    `batch` is in videos (of a LoadGen scenario: the most that one call may carry), `time` in feature vectors of each.
    `peak_memory_mb`, `device_memory_mb`, `load_s` and `first_inference_ms` come from a process of the backend's own
    (see `rdfa.bench.cold_start`).
    """

    backend: str
    device: str
    dtype: str
    scenario: str
    batch: int
    time: int
    verdict: str
    copies: str = "none"  # between host and device: "counted" in the latency, "not counted", "none" to be made
    threads: int | None = None
    latency_ms: dict[str, float] | None = None
    samples: int = 0
    warmup_calls: int = 0
    throughput_videos_per_s: float | None = None
    speedup_vs_reference: float | None = None
    reference: str | None = None  # the backend that the speed-up is against
    equal_to_fastest: bool | None = None  # not told apart from the fastest row of this batch and time
    compared_by: str | None = None  # "wall" or "cpu": the time by which rows are called equal, see `rdfa.bench.timing`
    aa_spread: float | None = None  # the relative difference that two runs of the same backend showed
    other_load: float | None = None  # cores kept busy by other programs meanwhile
    loadgen: dict[str, Any] | None = None  # of its scenarios: result, reasons, queries, target, bound, logs
    parity: dict[str, Any] | None = None
    detections: dict[str, Any] | None = None
    average_map: float | None = None  # mean average precision on the given set
    peak_memory_mb: float | None = None
    device_memory_mb: float | None = None
    model_mb: float | None = None
    compulsory_mb: float | None = None  # weights, inputs and outputs: what a call has to move at least
    gflops: float | None = None  # operations of one call, in 10^9
    percent_of_peak: float | None = None  # of the matrix product measured in the same run
    energy_j_per_video: float | None = None
    sm_clock_mhz: int | None = None  # of the GPU at the end of a second of such calls
    load_s: float | None = None
    first_inference_ms: float | None = None

    @property
    def valid(self) -> bool:
        return self.verdict == "valid"

    @property
    def skipped(self) -> bool:
        return self.verdict.startswith("skipped")

    def drop_speed(self, verdict: str) -> None:
        """Make the row one that shows no speed, for the reason in `verdict`."""
        self.verdict, self.samples, self.warmup_calls = verdict, 0, 0
        self.latency_ms = self.throughput_videos_per_s = self.speedup_vs_reference = self.equal_to_fastest = None
        self.first_inference_ms = self.percent_of_peak = self.energy_j_per_video = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def document(environment: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """The content of `results.json`, checked against the schema where `jsonschema` is installed.

    Raises:
        jsonschema.ValidationError: the rows contradict the schema, for example a speed in a row that is not valid.
    """
    result = {"environment": environment, "rows": [row.to_json() for row in rows]}
    if importlib.util.find_spec("jsonschema") is not None:
        import jsonschema

        jsonschema.validate(result, json.loads(SCHEMA.read_text(encoding="utf-8")))
    return result


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON. NaN and infinity are refused: JSON has neither."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")

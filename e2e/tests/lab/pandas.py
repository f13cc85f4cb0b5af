# What README.md makes of a result is a table of numbers: `cells`, `runs` and `samples` are there.
from pandas.api.types import is_bool_dtype, is_numeric_dtype

UNITS = ("_seconds", "_bytes", "_bytes_per_second", "_bits_per_second", "_low", "_high")
NUMBERS = {
    "cells": ["counts.measured", "figures.goodput.median", "figures.goodput.ci95_low", "figures.goodput.ci95_high",
              "figures.goodput.to_native.estimate", "figures.goodput.to_native.ci95_low",
              "figures.exits-per-frame.median", "exits_by_cause.wait.mean_handling_seconds"],
    "runs": ["block", "started_unix_seconds", "goodput_bytes_per_second", "a.interval_seconds", "a.cpu.host_seconds",
             "a.cpu.guest_seconds", "a.host_cpu.idle_seconds", "a.frames.transmit_frames", "a.overhead_bytes",
             "a.start_to_first_frame_seconds", "a.exits.by_cause.wait.handling_seconds", "b.received_bytes"],
    "samples": ["at_seconds", "sent_bytes", "received_bytes"],
}
numeric = 0
for name, frame in (("cells", cells), ("runs", runs), ("samples", samples)):
    assert len(frame) > 0, name
    for column in NUMBERS[name]:
        assert is_numeric_dtype(frame[column]), f"{name}: {column} is {frame[column].dtype}: {frame[column].tolist()}"
        assert frame[column].notna().any(), f"{name}: {column} has no number"
    for column in frame.columns:
        values = frame[column].dropna()
        numbers = len(values) > 0 and all(isinstance(value, (int, float)) for value in values)
        if numbers or column.endswith(UNITS) and len(values) > 0:
            numeric += 1
            assert is_numeric_dtype(frame[column]) or is_bool_dtype(values), \
                f"{name}: {column} is {frame[column].dtype}: {values.tolist()[:3]}"
        # A name of Rust's own, or of a variant, is none of a column.
        assert not {"Ok", "Err", "Some", "None"} & set(column.split(".")), column
assert set(runs["status"]) == {"measured", "skipped"} or set(runs["status"]) == {"measured", "failed"}, set(runs["status"])
failed = runs[runs["status"] != "measured"]
assert failed["goodput_bytes_per_second"].isna().all() and failed["reason"].str.len().min() > 0
medians = runs.groupby(["arm", "peer", "direction"])["goodput_bytes_per_second"].median()
cell = cells[cells["arm"] == "native"].iloc[0]
assert abs(medians[cell["arm"], cell["peer"], cell["direction"]] - cell["figures.goodput.median"]) < 1
assert cell["figures.goodput.unit"] == "bytes-per-second"
print(f"{len(cells)} cells, {len(runs)} runs, {len(samples)} samples, {numeric} numeric columns")

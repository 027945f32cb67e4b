from pathlib import Path

from diffplan.metrics import MetricsLog


def test_a_torn_last_line_is_dropped_and_later_rows_too(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert MetricsLog(tmp_path, first=1).rows == [{"step": 1, "loss": 3.0}]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 3.0}\n'

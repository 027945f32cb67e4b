from pathlib import Path

from diffplan.metrics import MetricsLog


def test_damaged_lines_cost_no_others(tmp_path: Path):
    lines = [b'{"step": 1}', b"", b'{"st', b"[1]", b'{"loss": 2.0}', b"\xff", b'{"step": 2}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert MetricsLog(tmp_path, first=5).rows == [{"step": 1}, {"step": 2}]


def test_a_torn_last_line_is_dropped_and_later_rows_too(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert MetricsLog(tmp_path, first=1).rows == [{"step": 1, "loss": 3.0}]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 3.0}\n'

import json

import numpy as np
import pytest

from lite_jax.files import append_row, keep_rows, write_atomically
from lite_jax.run.metrics import MetricsWriter, interval


def test_interval_is_the_published_formula():
    values = np.random.default_rng(0).random(600)
    found = interval(values)
    assert found.num_tasks == 600
    np.testing.assert_allclose(found.mean, sum(values) / 600)
    variance = sum((values - values.mean()) ** 2) / 600
    np.testing.assert_allclose(found.half_width, 1.96 * (variance / 600) ** 0.5)


def test_interval_covers_the_truth_about_19_times_in_20():
    rng = np.random.default_rng(0)
    found = [interval(rng.random(200) < 0.8) for _ in range(2000)]
    covered = np.mean([abs(f.mean - 0.8) < f.half_width for f in found])
    assert 0.93 < covered < 0.97


def test_rows_are_json_lines_and_refuse_what_json_lacks(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"step": 1, "loss": 0.5})
    append_row(path, {"step": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_row(path, {"loss": float("nan")})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2}]
    with path.open("a") as file:
        file.write('{"step": 3')
    keep_rows(path, lambda row: row["step"] != 1)
    assert path.read_text() == '{"step": 2}\n'
    keep_rows(tmp_path / "none.jsonl", bool)
    assert not (tmp_path / "none.jsonl").exists()


def test_reopened_writer_drops_what_will_be_written_again(tmp_path):
    def open_at(step):
        return MetricsWriter(tmp_path, last_step=step)

    writer = open_at(0)
    for step in (1, 2, 3):
        writer.write("train", step, {"loss": 1.0 / step}, {"tasks_per_second": 9.0})
    writer.write("test", 2, {"mean": 0.5})
    writer.close()
    open_at(2).close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == [1, 2]
    assert "tasks_per_second" not in "".join(lines)


def test_a_file_that_cannot_be_replaced_leaves_no_draft(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]

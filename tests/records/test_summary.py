"""``summary.json`` has the fields of its schema, and a format that later versions can tell from their own."""

import json

import pytest

from clbench.errors import DamagedRecord
from clbench.protocol.tuning import run_record, score
from clbench.records.run_folder import RunFolder
from clbench.records.summary import FORMAT, STATUSES, Costs, Summary
from clbench.run import recorded, run
from clbench.testing.small_runs import composed

OPTIONS = ["strategy=finetune", "model.hidden=[8]", "trainer.epochs=null", "trainer.max_steps_per_task=2", "evaluator.every=0",
           "record.figure=false", "progress=false", "device=cpu"]  # fmt: skip


def test_a_finished_run_writes_every_field_of_the_schema(tmp_path):
    returned = run(composed(*OPTIONS), tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == returned == RunFolder(tmp_path).read_summary()
    assert list(written) == list(Summary.__annotations__)
    assert set(written["costs"]) == set(Costs.__annotations__)
    assert written["format"] == FORMAT == 1
    assert recorded(composed(*OPTIONS), tmp_path) == written


@pytest.mark.parametrize("status", STATUSES)
def test_a_summary_without_a_format_is_read(tmp_path, status):
    (tmp_path / "summary.json").write_text(json.dumps({"status": status}))
    assert RunFolder(tmp_path).status == status
    RunFolder(tmp_path).write_summary({"status": status})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"format": 1, "status": status}
    assert RunFolder(tmp_path).status == status


def test_a_newer_format_is_refused_and_stays_as_it_is(tmp_path):
    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"format": 7, "status": "running"}))
    readers = [
        lambda: run(composed(*OPTIONS), tmp_path),
        lambda: RunFolder(tmp_path).status,
        lambda: score(tmp_path, "ACC"),
        lambda: run_record(tmp_path.parent, tmp_path.name),
    ]
    for read in readers:
        with pytest.raises(DamagedRecord) as error:
            read()
        assert str(error.value) == (
            f"{file} has format 7, and this version of clbench knows formats up to 1: read it with the version that wrote it, "
            "or a newer one"
        )
    assert json.loads(file.read_text()) == {"format": 7, "status": "running"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "its status is a list, none of running, finished, diverged, failed, interrupted"),
        ({}, "its status is None"),
        ({"status": "asleep"}, "its status is 'asleep'"),
        ({"status": "finished", "format": 0}, "its format is 0"),
        ({"status": "finished", "format": True}, "its format is True"),
        ({"status": "finished", "format": "1"}, "its format is '1'"),
    ],
)
def test_what_no_run_writes_is_damaged(tmp_path, content, said):
    (tmp_path / "summary.json").write_text(json.dumps(content))
    with pytest.raises(DamagedRecord, match=said):
        _ = RunFolder(tmp_path).status

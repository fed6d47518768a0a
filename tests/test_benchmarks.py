"""The benchmark of graphics cards runs on a processor, too, so that it works on the day when a card is at hand."""

import json
import math

import bench_card
import pytest
import torch


@pytest.fixture
def dry_run(monkeypatch, capsys):
    """What --dry-run of some parts measures, and what it prints. Compiling is left out: it takes a minute."""
    monkeypatch.setattr(torch, "compile", lambda model, **given: model)

    def dry_run(*what):
        found = bench_card.main(["--dry-run", *what])
        return found, capsys.readouterr().out

    return dry_run


def test_every_part_measures_something_and_all_of_it_is_one_line_of_json(dry_run):
    found, out = dry_run()
    assert json.loads(out.splitlines()[-1], parse_constant=pytest.fail) == json.loads(json.dumps(found))
    assert found.keys() == {"machine", "text", *bench_card.PARTS} - {"nanogpt"}
    steps = {row["name"]: row for row in found["steps"]}
    assert len(steps) == 9 and all("float16" in row["failed"] for name, row in steps.items() if name[:7] == "float16")
    assert all(0 < row["ms"] < math.inf and row["share"] > 0 for row in steps.values() if "failed" not in row)
    assert len(found["loss"]["losses"]) == found["loss"]["steps"] + 1 and found["loss"]["seconds_to_goal"] is None
    assert found["sample"]["one text"]["start"] == found["sample"]["one text, no cache"]["start"]
    assert found["resume"] == dict(resumed=0.0, repeated=0.0)
    assert set(found["makemore"]) == set(bench_card.makemore.MODELS) - {"ngram"}


@pytest.mark.parametrize("argv, says", [(["--dry-run", "speed"], "unknown: speed"), ([], "torch sees no card")])
def test_what_cannot_be_measured_is_told(argv, says):
    with pytest.raises(SystemExit, match=says):
        bench_card.main(argv)

"""The log of `fuzz` keeps counts and faults, and says where to continue."""

from fuzz import Log

GOOD = (0, "inspect", "succeeded", None, "hybridize inspect")
BAD = (1, "convert", "fault", "Traceback", "hybridize convert")


def test_a_second_run_continues_after_the_first(tmp_path):
    Log(tmp_path / "log.json").add([GOOD, BAD], 2.0)
    log = Log(tmp_path / "log.json")
    assert log.next_case == 2
    assert log.total() == {"succeeded": 1, "fault": 1}
    assert log.fault_numbers == [1]
    log.add([(2, "convert", "refused", None, "")], 1.0)
    assert log.next_case == 3
    assert log.total() == {"succeeded": 1, "fault": 1, "refused": 1}


def test_a_mended_fault_leaves_the_log(tmp_path):
    log = Log(tmp_path / "log.json")
    log.add([GOOD, BAD], 2.0)
    log.replace([(1, "convert", "refused", None, "")])
    assert Log(tmp_path / "log.json").fault_numbers == []
    assert log.total() == {"succeeded": 1, "fault": 0, "refused": 1}
    assert log.next_case == 2


def test_a_fault_that_remains_stays(tmp_path):
    log = Log(tmp_path / "log.json")
    log.add([GOOD, BAD], 2.0)
    log.replace([BAD])
    assert log.fault_numbers == [1]
    assert log.total() == {"succeeded": 1, "fault": 1}

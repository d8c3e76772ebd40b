import errno
import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from trl_rlp.storage import claims
from trl_rlp.storage.claims import Claims


def claim_of(folder, index, **owner):
    path = folder / f".claim-{index:05d}"
    path.write_text(json.dumps(owner))
    return path


def own_claim(folder):
    """Returns what a claim of this process says."""
    with Claims(folder) as own:
        own.take(99)
        return json.loads((folder / ".claim-00099").read_text())


def test_a_shard_is_claimed_once_until_it_is_released(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take(3) and not second.take(3) and second.take(4)
        first.release(3)
        assert second.take(3)
        assert not first.take_over(3)
    assert not list(tmp_path.iterdir())


def test_a_claim_of_a_process_that_has_ended_is_taken_over_and_logged(tmp_path, caplog):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = claim_of(tmp_path, 3, **{**own_claim(tmp_path), "pid": ended.pid})
    with Claims(tmp_path) as own:
        assert not own.take(3) and own.take_over(3)
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert len(caplog.messages) == 1
    assert f"process {ended.pid} on " in caplog.text and "died before it finished shard 3. This process" in caplog.text


def test_a_process_that_nobody_has_waited_for_has_ended_too(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    with Claims(tmp_path) as own:
        claim_of(tmp_path, 3, **{**own_claim(tmp_path), "pid": ended.pid, "started": time.time()})
        assert own.take_over(3)
    ended.wait()


def test_another_process_with_the_number_of_an_ended_one_does_not_hold_its_claim(tmp_path):
    started = own_claim(tmp_path)["started"] - 60
    claim_of(tmp_path, 3, **{**own_claim(tmp_path), "started": started})
    with Claims(tmp_path) as own:
        assert own.take_over(3)


def test_a_living_process_keeps_its_claim(tmp_path):
    claim_of(tmp_path, 3, **own_claim(tmp_path))
    with Claims(tmp_path) as own:
        assert not own.take_over(3)


def test_a_process_on_another_host_that_is_silent_too_long_has_died(tmp_path, monkeypatch):
    """The clock is that of the process that looks: a modification time in the future or the past does not matter."""
    path = claim_of(tmp_path, 3, host="elsewhere", pid=1, started=0.0)
    clock = [1000.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: clock[0])
    with Claims(tmp_path) as own:
        for beat in (10**9, 5 * 10**18):
            os.utime(path, ns=(beat, beat))
            assert not own.take_over(3)
            clock[0] += claims.SILENT_SECONDS
            assert not own.take_over(3)
        clock[0] += 1
        assert own.take_over(3)


def test_a_claim_that_is_being_written_is_kept(tmp_path):
    (tmp_path / ".claim-00003").touch()
    with Claims(tmp_path) as own:
        assert not own.take_over(3)


def test_a_held_claim_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    with Claims(tmp_path) as own:
        own.take(3)
        path = tmp_path / ".claim-00003"
        os.utime(path, ns=(0, 0))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime_ns == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime_ns > 0


def test_claims_of_an_earlier_run_are_cleared(tmp_path):
    claim_of(tmp_path, 3, **own_claim(tmp_path))
    assert Claims.clear(tmp_path) == 1
    with Claims(tmp_path) as own:
        assert own.take(3)


def test_claims_of_another_run_that_works_are_not_cleared(tmp_path):
    claim_of(tmp_path, 3, **own_claim(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started = psutil.Process(other.pid).create_time()
        claim_of(tmp_path, 4, **{**own_claim(tmp_path), "pid": other.pid, "started": started})
        with pytest.raises(
            ValueError, match=rf"Process {other.pid} of another run works in .* Wait until it ends, or"
        ):
            Claims.clear(tmp_path)
        assert len(list(tmp_path.glob(".claim-*"))) == 2
        other.communicate(b"\n")
    assert Claims.clear(tmp_path) == 2


def test_a_claim_that_cannot_be_written_is_named_and_released(tmp_path, monkeypatch):
    def fail(value, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(claims.json, "dump", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*\.claim-00003'"), Claims(tmp_path) as own:
        own.take(3)
    assert not list(tmp_path.iterdir())

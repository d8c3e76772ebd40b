"""The stand-in for vLLM, for the tests of the engine."""

import json
import sys
from pathlib import Path


FAKE_VLLM = Path(__file__).parents[2] / "fake_vllm"


class FakeVLLM:
    """Puts the stand-in on the path of this process and of its children, and reads what it was called with."""

    def __init__(self, monkeypatch, folder):
        self.log = folder / "fake_vllm.log"
        monkeypatch.syspath_prepend(str(FAKE_VLLM))
        monkeypatch.setenv("PYTHONPATH", str(FAKE_VLLM))
        monkeypatch.setenv("FAKE_VLLM_LOG", str(self.log))
        # A module that the test imports is removed after the test, because its key is set here.
        monkeypatch.setitem(sys.modules, "vllm", None)
        del sys.modules["vllm"]

    def read(self, name):
        """Returns the entries of this name, in order."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [entry[name] for entry in map(json.loads, lines) if name in entry]

import os
import pickle
from pathlib import Path

import pytest
import torch
from datasets.fingerprint import Hasher

from tests.tiny_models import save, tiny_reward_model, tiny_tokenizer
from trl_rlp.data import worker_models
from trl_rlp.data.worker_models import WorkerModel, hold_reward_model, prepare_worker


class Loader:
    """Loads a text and counts how often. Its calls are those of one process."""

    calls = 0

    def __call__(self):
        Loader.calls += 1
        return "model"


def test_the_model_is_loaded_once_when_it_is_first_needed_and_never_pickled():
    Loader.calls = 0
    model = WorkerModel("reward_model", "folder", Loader())
    assert Loader.calls == 0
    assert [model.get(), model.get(), Loader.calls] == ["model", "model", 1]
    copy = pickle.loads(pickle.dumps(model))
    assert vars(copy)["_model"] is None and copy.get() == "model" and Loader.calls == 2


def test_a_loaded_model_is_not_sent_to_other_processes():
    tokenizer = tiny_tokenizer()
    held = hold_reward_model(tiny_reward_model(tokenizer), tokenizer, {})
    assert held.get()[1] is tokenizer
    with pytest.raises(TypeError, match="`reward_model` is a loaded model, which is not sent to other processes"):
        pickle.dumps(held)


def test_objects_without_weights_are_pickled():
    assert pickle.loads(pickle.dumps(WorkerModel("equivalence", {"a": 1}))).get() == {"a": 1}


def test_another_version_of_the_package_is_one_clear_line(monkeypatch):
    sent = pickle.dumps(WorkerModel("equivalence", 1))
    monkeypatch.setattr(worker_models, "__version__", "9.9")
    with pytest.raises(RuntimeError, match="This process has trl_rlp 9.9, .* Install the same version on all mach"):
        pickle.loads(sent)


def test_a_named_reward_model_has_its_own_tokenizer_and_options(tmp_path):
    tokenizer = tiny_tokenizer()
    folder = save(tiny_reward_model(tokenizer), tokenizer, tmp_path / "reward")
    model, loaded = hold_reward_model(folder, None, {"dtype": torch.float64}).get()
    assert model.dtype == torch.float64 and loaded.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(TypeError, match="`reward_processing_class` belongs to a loaded model"):
        hold_reward_model(folder, tokenizer, {})
    with pytest.raises(TypeError, match=r"\['dtype'\] are options of a model that is loaded by name"):
        hold_reward_model(model, tokenizer, {"dtype": "float32"})
    with pytest.raises(ValueError, match="`reward_processing_class` is None"):
        hold_reward_model(model, None, {})


def test_the_cache_of_datasets_notices_new_weights_in_the_same_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"old")
    first = Hasher.hash(hold_reward_model(tmp_path, None, {}))
    assert Hasher.hash(hold_reward_model(tmp_path, None, {})) == first
    file.write_bytes(b"new")
    os.utime(file, ns=(1, 1))
    assert Hasher.hash(hold_reward_model(tmp_path, None, {})) != first
    assert Hasher.hash(hold_reward_model(Path("a-name-on-the-hub"), None, {})) != first


def test_the_rank_selects_the_accelerator(monkeypatch):
    selected = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", selected.append)
    for rank in (None, 0, 1, 2, 3):
        prepare_worker(rank)
    assert selected == [0, 1, 0, 1]


@pytest.mark.parametrize(("is_forked", "expected"), [(True, [1]), (False, [])])
def test_a_forked_process_computes_with_one_thread(is_forked, expected, monkeypatch):
    """It has no other threads, so a matrix product with several threads would not end."""
    numbers = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(worker_models, "_PROCESS", os.getppid() if is_forked else os.getpid())
    prepare_worker(None)
    assert numbers == expected

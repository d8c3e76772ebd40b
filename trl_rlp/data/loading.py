"""One way to name a data set: a JSON-lines file, a folder written by `Dataset.save_to_disk`, or a name on the Hub."""

from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk


def load_rows(name: str, split: str = "train") -> Dataset:
    """
    Loads a data set by the kind of name it has.

    Args:
        name (`str`):
            Path of a `.json` or `.jsonl` file, path of a folder written by `Dataset.save_to_disk`, or a data set's
            name on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub data set. Local files have one split and ignore it.

    Returns:
        `datasets.Dataset`.

    Raises:
        FileNotFoundError: if the name looks like a local path and nothing is there.
        ValueError: if the file is empty.

    Example:

    ```python
    >>> from trl_rlp.data.loading import load_rows

    >>> load_rows("no_such_file.jsonl")
    Traceback (most recent call last):
        ...
    FileNotFoundError: No data set at 'no_such_file.jsonl'. Pass a JSON-lines file, a folder of `save_to_disk`, or a \
Hub name.
    ```
    """
    path = Path(name)
    if path.is_file():
        if not path.stat().st_size:
            raise ValueError(f"The data set at '{name}' is empty. Write one JSON object a line.")
        return load_dataset("json", data_files=str(path), split="train")
    if path.is_dir():
        return load_from_disk(str(path))
    if path.suffix in {".json", ".jsonl"} or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"No data set at '{name}'. Pass a JSON-lines file, a folder of `save_to_disk`, or a Hub name."
        )
    return load_dataset(name, split=split)

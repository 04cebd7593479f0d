"""Anyone's questions: files of seven formats, read lazily as a sequence of `Sample`s."""

from grpo_fast.data.dataset import Dataset
from grpo_fast.data.opening import open_data

__all__ = ["Dataset", "open_data"]

"""What is known of the patient, as the text that stands after the images and before the question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Columns, and the words that introduce them.
CONTEXT_COLUMNS = {
    "patient_context": "Patient",
    "context": "Context",
    "clinical_information": "Clinical information",
    "history": "History",
}


def worded(given: Mapping[str, str]) -> str:
    """One line for each column that says something; "" where none does."""
    return "".join(f"{words}: {given[name].strip()}\n" for name, words in CONTEXT_COLUMNS.items() if name in given)


def is_context(part: Mapping[str, Any], meta: Mapping[str, Any]) -> bool:
    """Whether a part of the last user turn is the patient's context, which belongs to no question or template."""
    return part.get("type") == "text" and part.get("text") == meta.get("context")

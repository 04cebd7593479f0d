"""`grpo-fast report`: run folders as one self-contained HTML page."""

"""Volumes (DICOM, NIfTI) and clips as the pictures that a question shows; `choice` says how to ask for them."""

"""The erasure: its loss, the trainer, and what steers and records a run."""

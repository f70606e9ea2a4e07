"""The commands of `ec-hf` that train: their flags, and what they print."""

"""Vision classifiers: how they are loaded, where they are looked into, and what rides on them."""

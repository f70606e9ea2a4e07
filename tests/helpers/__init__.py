"""What several test files use: models, data, trainers, reports, a Hub on this machine, launched processes."""

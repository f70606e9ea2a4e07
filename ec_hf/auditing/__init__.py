"""What models still know of a forget set: asked once, measured, kept as data."""

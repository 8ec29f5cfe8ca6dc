"""Each peer's server around the exported network, as its own documentation would have a user write it."""

"""Chat models in this process: an engine, its batch, and the cache of what it has read."""

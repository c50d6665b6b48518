"""The protocols that are served, a file each, by their public definitions."""

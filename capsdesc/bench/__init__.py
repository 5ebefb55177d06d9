"""Time and memory, measured beside the peers."""

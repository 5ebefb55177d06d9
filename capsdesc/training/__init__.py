"""Training from camera poses: scenes, pairs, losses and the loop."""

"""Images and keypoints to descriptors, and the coarse-to-fine search for points of one image in another."""

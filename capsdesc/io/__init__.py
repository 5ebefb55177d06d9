"""Files in and out: images, COLMAP models, features for other tools."""

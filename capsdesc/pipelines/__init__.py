"""Many images: their features, matches of listed pairs, retrieval, and structure from motion."""

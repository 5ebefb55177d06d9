"""How good descriptors are: benchmarks, metrics and reports, run by ``capsdesc eval``."""

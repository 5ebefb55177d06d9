"""A page in the browser to look at what the descriptors find in two photographs: ``capsdesc demo``."""

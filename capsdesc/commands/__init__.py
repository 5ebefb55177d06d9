"""The command lines: a file each, and options that several have, each defined once."""

"""`make bench-peers`: the same reading by other libraries, each in a virtual environment of its own."""

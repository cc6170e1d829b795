"""What a direction says and which parts of the network write and read it."""

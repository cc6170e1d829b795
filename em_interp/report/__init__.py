"""The main job from end to end, and the page, figures and numbers that it writes."""

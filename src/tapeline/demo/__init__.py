"""The demo, and the check that every event of it arrived."""

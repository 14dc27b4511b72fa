"""Jobs that run from time to time rather than all the time: plain functions that a person, a timer or a scheduler calls."""

"""What is done now and again rather than all the time: plain functions, for a person, a timer or a scheduler to call."""

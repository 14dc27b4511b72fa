"""The services of the local machine: locks, files, SQLite, the clock, the terminal and threads."""

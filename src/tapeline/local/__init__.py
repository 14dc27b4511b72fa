"""What one machine offers: locks, files, its clock, its terminal, threads."""

"""What every process says of itself. Below everything that reports."""

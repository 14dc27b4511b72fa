"""What the stages say of themselves, and how it is shown."""

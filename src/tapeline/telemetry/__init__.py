"""The status that every process reports about itself. Modules that report import this package; it imports none of them."""

"""Opens the streams, stores and histories that the configuration names, and starts the stages. No other package knows concrete classes."""

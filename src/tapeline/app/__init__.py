"""The only place that knows concrete classes: opens streams, stores and histories by the configuration, and starts the stages."""

"""Real servers for tests and benchmarks, from Redis to Alertmanager, each started as a process of its own on the loopback."""

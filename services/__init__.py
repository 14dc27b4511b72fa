"""Real servers for tests and benchmarks: Redis, PostgreSQL and Apache Kafka, each started as a process of its own on the loopback."""

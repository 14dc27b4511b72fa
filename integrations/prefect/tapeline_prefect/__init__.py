"""Tapeline's jobs in Prefect 3. It starts Tapeline's commands as processes, and has none of Tapeline's packages."""

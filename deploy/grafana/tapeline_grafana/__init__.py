"""The dashboards of Tapeline for Grafana, as Python."""

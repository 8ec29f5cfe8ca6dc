"""The engine: the one owner of queues and device. Knows neither HTTP nor metrics."""

"""The engine owns the queues and the device. It knows neither HTTP nor metrics."""

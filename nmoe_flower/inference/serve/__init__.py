"""The device that answers: its service, its queue, its limits."""

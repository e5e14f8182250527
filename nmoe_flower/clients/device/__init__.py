"""What a device has of its own: its configuration, its images, its networks, its disk."""

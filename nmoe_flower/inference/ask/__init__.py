"""The device that asks: whom, for what, how long, and what it cost."""

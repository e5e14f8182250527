"""The client halves, one handler per action; strategies hold the server halves."""

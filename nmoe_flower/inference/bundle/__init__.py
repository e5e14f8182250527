"""The folder that a device serves and asks with."""

"""Faults against real servers: what was accepted is handled, whatever breaks."""

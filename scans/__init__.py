"""Disk -> slices, scans, patients, grey levels."""

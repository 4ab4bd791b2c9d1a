"""Metrics, their intervals, calibration."""

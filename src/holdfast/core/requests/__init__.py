"""Requests across a fault: rewind, journal, readmission."""

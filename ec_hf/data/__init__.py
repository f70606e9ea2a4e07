"""Requests, and the forget and retain parts that they make of a dataset."""

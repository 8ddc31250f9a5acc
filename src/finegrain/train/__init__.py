"""Pairs + configuration → weights."""

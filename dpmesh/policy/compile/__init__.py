"""Compiles message types and their rules into Plans. The walk over messages knows no field kind."""

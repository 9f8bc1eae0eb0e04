"""Devices: process start-up, the mesh, and the two tables that place every array on it."""

"""Extractors that have their encoders in other processes: several on this machine, or a cluster's."""

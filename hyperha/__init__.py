"""High availability for virtual machines on two ordinary servers, without shared storage."""

__version__ = "0.1.0"

"""What POSIX promises of the folder, shown on two real replication processes or two daemons."""

"""SMTP without I/O: machines for both roles. Octets come in, events and octets go out."""

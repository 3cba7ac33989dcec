"""What domains publish about the TLS of their mail: DANE (RFC 7672) and MTA-STS (RFC 8461)."""

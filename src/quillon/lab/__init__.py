"""The laboratory: a test PKI and an SMTP sink, for the demo and for trying a configuration without a partner."""

"""What tests share: a running Quillon, certificates, peers of other projects."""

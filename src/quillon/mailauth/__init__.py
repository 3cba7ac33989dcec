"""Who a message is from, as DNS and signatures tell: DKIM, SPF, DMARC, ARC. Pure; DNS comes in as a function."""

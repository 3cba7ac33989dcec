"""TLS without I/O: engines that turn ciphertext into plaintext and a handshake into a verdict."""

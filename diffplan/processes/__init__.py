"""Teams for real: every robot is an operating-system process, and they talk over zenoh."""

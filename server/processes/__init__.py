"""One server over several processes: frontends, an engine process, and the supervisor that keeps them."""

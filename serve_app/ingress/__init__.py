"""HTTP: requests to specs, errors to statuses. Imports core only; the conductor is handed in."""

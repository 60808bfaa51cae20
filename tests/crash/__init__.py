"""Deaths at named moments, on real stores, under reads: `make crash`."""

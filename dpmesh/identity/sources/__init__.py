"""Where identities come from: files and the SPIFFE Workload API."""

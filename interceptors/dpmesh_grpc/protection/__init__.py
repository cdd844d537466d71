"""Interceptors that protect what clients and servers send."""

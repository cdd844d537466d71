"""The schema's generated code, at the path that users' generated code imports."""

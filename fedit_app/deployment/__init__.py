"""Running a federation on real machines: folders of server and nodes, TLS, registration, checks."""

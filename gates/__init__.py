"""The built-in gates: thin tests. Judging stands in pytest_osgates/checks, asking in pytest_osgates/observers."""

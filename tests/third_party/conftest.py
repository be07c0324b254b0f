"""The package in this folder is installed, trained and tested by tests/test_third_party.py, not collected from here."""

collect_ignore_glob = ["*"]

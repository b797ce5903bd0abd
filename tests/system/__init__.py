"""Tests on a machine of their own, booted by systemd."""

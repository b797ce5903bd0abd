"""The pure core: it decides, and touches nothing.

Modules here import the standard library only, never await, open no socket or file and read no clock.
"""

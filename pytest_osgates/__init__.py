"""pytest-osgates: launch gates for Linux distributions.

Importing this package imports nothing else: every pytest run on a machine that has it installed pays for
what stands here.
"""

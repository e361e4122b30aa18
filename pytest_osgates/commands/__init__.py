"""The subcommands of ``osgates``, one module each."""

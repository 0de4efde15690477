"""From a suite file to cells."""

"""Turn finished results into tables and figures."""

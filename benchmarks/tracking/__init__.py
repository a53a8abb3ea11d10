"""Speed over time: what asv measures of each commit (``asv.conf.json``)."""

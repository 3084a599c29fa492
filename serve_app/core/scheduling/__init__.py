"""One replica: which samples step next, in which batch, with which models in memory."""

"""eka and its peers on one machine, in turns: what scripts/compare is made of."""

"""Samples any model on any steps, for measurements and ODE pairs; the README says more."""

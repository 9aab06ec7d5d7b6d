"""The scaling law: fit it to finished runs, compare its variants, plan the next run by it. No torch."""

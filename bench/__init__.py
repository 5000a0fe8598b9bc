"""Measurements: installed as ``draggan_fast.bench``, reached only by the command line (bench, profile, plan, eval).

Importing it costs nothing; each command imports what it runs. Benchmarks print data (JSON) and decide no test.
"""

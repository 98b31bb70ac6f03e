"""The papers' findings, run again beside their controls: scripts with results of their own."""

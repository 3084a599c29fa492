"""`aura bench gpu`: SDXL at full size with random weights, against this card's own ceiling.

Each part is measured in turn until the time is over, and the JSON is written after each, so that a
run that is cut off loses little. On a CPU the same runs at toy size.
"""

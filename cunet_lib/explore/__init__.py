"""Explore: what z does in a trained C-U-Net, to see, to hear and in numbers.

``steering`` computes what one z gives, ``picture`` draws it, ``panel`` is the control panel of
notebook 06 around both; ``conditioning`` measures what notebook 07 tells, and
``conditioning_figures`` shows it; ``architecture`` draws the network. Runs, songs and z enter;
pictures, sounds, tables and figures leave. May import every other room but workflow.
"""

"""Separation: a trained network, a mixture and conditions in; estimates out.

``separator`` is the one pipeline of masks, used by test tracks, users' songs and the control
panel; ``stream`` applies its masks to songs of any rate, channels and length, and ``highs`` goes on
above the frequencies that a network hears; ``songs`` is what users ask for, files in and out;
``catalog`` finds trained models. References are never seen here.
May import core, signal and models.
"""

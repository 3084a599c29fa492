"""`aura bench overhead`: what is spent on an image outside its networks.

`step` has the engine's bookkeeping between two calls of the UNet, `request` the way of a request
through HTTP and Ray.
"""

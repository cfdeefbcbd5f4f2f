"""Tables that store live entries only, and kernels over them."""

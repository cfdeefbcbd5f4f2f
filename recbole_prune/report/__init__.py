"""Tables from tickets."""

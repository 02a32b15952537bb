"""Features of a frozen encoder, and the measures made of them."""

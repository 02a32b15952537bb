"""Features of a frozen encoder, and measures computed from them."""

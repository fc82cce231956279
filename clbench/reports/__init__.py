"""Tables and figures; reads run folders only and imports no torch."""

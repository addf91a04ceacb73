package expr

// Nearest returns the hint `did you mean "x"?` with the most similar of names, or
// "" if none is similar.
func Nearest(name string, names []string) string { return nearest(name, names) }

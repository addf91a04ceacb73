package expr

// Suggest returns the hint `did you mean "x"?` with the most similar of names, or
// "" if none is similar.
func Suggest(name string, names []string) string { return nearest(name, names) }

package expr

// Nearest returns a hint with that of names which was probably meant by name, or
// "" if none is near.
func Nearest(name string, names []string) string { return nearest(name, names) }

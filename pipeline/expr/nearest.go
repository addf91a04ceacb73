package expr

import "millrace/pipeline/expr/wording"

// Suggest returns the hint `did you mean "x"?` with the most similar of names, or
// "" if none is similar.
func Suggest(name string, names []string) string { return wording.Nearest(name, names) }

func nearest(name string, names []string) string { return wording.Nearest(name, names) }
func listed(names []string, n int) string        { return wording.List(names, n) }
func article(word string) string                 { return wording.Article(word) }
func typeWord(s string) string                   { return wording.Type(s) }

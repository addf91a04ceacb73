package nulls

import (
	"maps"
	"strings"
)

// Facts holds what is known where an expression is evaluated: the paths of values that
// are not null, and the paths of map entries that exist. The zero value is empty. Facts
// are immutable.
type Facts map[string]bool

// here is the prefix of the fact that a map has an entry.
const here = "has "

func (f Facts) with(more ...string) Facts {
	out := f
	for _, path := range more {
		if path == "" || path == here || out[path] {
			continue
		}
		if len(out) == len(f) {
			out = maps.Clone(f)
			if out == nil {
				out = Facts{}
			}
		}
		out[path] = true
	}
	return out
}

// And returns the facts of both.
func (f Facts) And(more Facts) Facts {
	out := f
	for path := range more {
		out = out.with(path)
	}
	return out
}

// NotNull returns the facts and that the value at a path is not null.
func (f Facts) NotNull(path string) Facts { return f.with(path) }

// Has returns the facts and that a map has an entry.
func (f Facts) Has(mapPath, key string) Facts { return f.with(here + mapPath + "." + key) }

// Without returns the facts that do not depend on a field. It is used when the field
// changes.
func (f Facts) Without(path string) Facts {
	if path == "" || len(f) == 0 {
		return f
	}
	out := Facts{}
	for fact := range f {
		if !mentions(fact, path) {
			out[fact] = true
		}
	}
	return out
}

// Only returns the facts about fields for which keep is true. keep gets the first name
// of a path.
func (f Facts) Only(keep func(name string) bool) Facts {
	out := Facts{}
	for fact := range f {
		if every(fact, keep) {
			out[fact] = true
		}
	}
	return out
}

// every reports whether keep holds for all names at the start of a path in a fact.
func every(fact string, keep func(name string) bool) bool {
	fact = strings.TrimPrefix(fact, here)
	for i := 0; i < len(fact); i++ {
		if !letter(fact[i]) || i > 0 && (letter(fact[i-1]) || fact[i-1] == '.') {
			continue
		}
		end := i
		for end < len(fact) && letter(fact[end]) {
			end++
		}
		if end < len(fact) && fact[end] == '(' || fact[i] >= '0' && fact[i] <= '9' || i > 0 && (fact[i-1] == '\'' || fact[i-1] == '"') {
			continue
		}
		if !keep(fact[i:end]) {
			return false
		}
	}
	return true
}

// mentions reports whether a fact contains the path of a field.
func mentions(fact, path string) bool {
	for at := 0; ; {
		i := strings.Index(fact[at:], path)
		if i < 0 {
			return false
		}
		i += at
		end := i + len(path)
		before := i == 0 || !letter(fact[i-1]) && fact[i-1] != '.' || strings.HasSuffix(fact[:i], "event.")
		if before && (end == len(fact) || !letter(fact[end])) {
			return true
		}
		at = i + 1
	}
}

func letter(c byte) bool {
	return c == '_' || c == '$' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// about returns the facts about the value at a path, relative to it.
func (f Facts) about(path string) (out Facts) {
	if path == "" {
		return nil
	}
	for fact := range f {
		rest, entry := strings.CutPrefix(fact, here)
		if after, ok := strings.CutPrefix(rest, path); ok && (after == "" || after[0] == '.' || after[0] == '[') {
			if entry {
				after = here + after
			}
			if after == "" {
				after = self
			}
			out = out.with(after)
		}
	}
	return out
}

// self is the relative fact that the value itself is not null.
const self = "@"

// at returns relative facts as facts about the value at a path.
func (f Facts) at(path string) (out Facts) {
	for fact := range f {
		rest, entry := strings.CutPrefix(fact, here)
		switch {
		case fact == self:
			out = out.with(path)
		case entry:
			out = out.with(here + path + rest)
		default:
			out = out.with(path + rest)
		}
	}
	return out
}

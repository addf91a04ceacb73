package topology

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/topology/align"
)

// grouped adds the faults of a stage or a fold. The same fault of several event types
// becomes a single fault that names the types, or their number if all types have it.
// all holds the names of the types that were compiled.
func (l *loader) grouped(faults []expr.Fault, all []string) {
	for _, g := range l.group(faults, all) {
		l.fault(g.at, g.Hint, "%s", g.Msg)
	}
}

// A grouped fault is one of several event types.
type groupedFault struct {
	expr.Fault
	at    align.Place
	types []string
}

// group merges the same fault of several types. The messages name the types.
func (l *loader) group(faults []expr.Fault, all []string) (out []groupedFault) {
	type key struct {
		at   align.Place
		text string
	}
	var order []key
	groups := map[key]*groupedFault{}
	for _, f := range faults {
		text := f.Msg
		if f.Type != "" { // messages that differ only in the name of the type are the same
			text = wordOf(f.Type[strings.LastIndexByte(f.Type, '.')+1:]).ReplaceAllString(text, "\x00")
		}
		k := key{l.place(f.Source, f.Offset), text}
		if groups[k] == nil {
			groups[k] = &groupedFault{Fault: f, at: k.at}
			order = append(order, k)
		}
		if i := slices.IndexFunc(all, func(name string) bool { return f.Type == name || strings.HasSuffix(f.Type, "."+name) }); i >= 0 && !slices.Contains(groups[k].types, all[i]) {
			groups[k].types = append(groups[k].types, all[i])
		}
	}
	for _, k := range order {
		g := groups[k]
		msg := g.Msg
		switch named := k.text != g.Msg; {
		case len(g.types) == 0:
		case named && len(g.types) == 1:
		case named && len(g.types) == len(all):
			msg += fmt.Sprintf("; the same applies to all %d types", len(all))
		case named:
			msg += "; the same applies to " + listed(g.types[1:])
		case len(g.types) < len(all):
			msg += " (for " + listed(g.types) + ")"
		}
		g.Msg = msg
		out = append(out, *g)
	}
	return out
}

// wordOf matches the name of a type, or of a record that is named after it, with any
// namespace.
func wordOf(name string) *regexp.Regexp {
	return regexp.MustCompile(`(?:\w+\.)*\b` + regexp.QuoteMeta(name) + `\w*`)
}

// typeNames returns the names of types: without namespace where that is unique.
func typeNames(types []*codec.Schema) []string {
	unique := func(s *codec.Schema) bool {
		return !slices.ContainsFunc(types, func(o *codec.Schema) bool { return short(o) == short(s) && o.Name() != s.Name() })
	}
	names := make([]string, len(types))
	for i, s := range types {
		if names[i] = s.Name(); unique(s) {
			names[i] = short(s)
		}
	}
	return names
}

// typeOf returns the index of the type that a word names, or -1. A fault is added
// unless the types of the topic are only partly known because of another fault.
func (l *loader) typeOf(word expr.Source, types []*codec.Schema, t *topic) int {
	names := typeNames(types)
	for i, s := range types {
		if word.Text == names[i] || word.Text == s.Name() {
			return i
		}
	}
	if t.unsure {
		return -1
	}
	hint := expr.Suggest(word.Text, names)
	if hint == "" && len(names) > 0 {
		hint = "its types are " + listed(names)
	}
	l.at(word, hint, "%s has no event type %s", t.Name, word.Text)
	return -1
}

// untyped reports that the types on a topic are unknown, unless that is the
// consequence of another fault. by is the pipeline or projection that reads it.
func (l *loader) untyped(t *topic, by *declared) {
	if t.unsure || t.Snapshots != nil {
		return
	}
	from, _ := by.args.Find("from")
	l.at(from.Value, "declare types on the topic, or let a pipeline write it", "%s reads %s, but the event types on that topic are unknown", by.what, t.Name)
}

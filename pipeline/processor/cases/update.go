package cases

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline/cli"
	"millrace/pipeline/topology"
)

// update makes the case expect the actual outcome, and reports whether the case
// changed. Partial expectations stay partial, and comments are kept.
func (e *caseEvent) update(got *eventOutcome) bool {
	var d differ
	d.outcome(e, got)
	if len(d.found) == 0 || got.failed != nil {
		return false
	}
	if e.kind == got.kind && e.kind != "" {
		e.updateSame(got)
		return true
	}
	want := got.node()
	for i := 0; i+1 < len(e.at.Content); i += 2 {
		if e.kind != "" && e.at.Content[i].Value == string(e.kind) {
			e.at.Content[i].Value, e.at.Content[i+1] = string(got.kind), want
			e.kind, e.want = got.kind, want
			return true
		}
	}
	e.at.Content = append(e.at.Content, textNode(string(got.kind)), want)
	if want.Kind != yaml.ScalarNode {
		e.at.Style &^= yaml.FlowStyle
	}
	e.kind, e.want = got.kind, want
	return true
}

// updateSame updates the details of an outcome of the expected kind.
func (e *caseEvent) updateSame(got *eventOutcome) {
	switch e.kind {
	case kindOut:
		e.want.Style &^= yaml.FlowStyle
		n := min(len(e.want.Content), len(got.out))
		for i, item := range e.want.Content[:n] {
			got.out[i].update(topology.Resolved(item), got.to)
		}
		e.want.Content = e.want.Content[:n]
		for _, record := range got.out[n:] {
			e.want.Content = append(e.want.Content, record.node())
		}
	case kindDeadLetter:
		parts := map[string]string{"stage": got.stage, "reason": got.reason, "error": got.error}
		eachPair(e.want, func(key, value *yaml.Node) {
			if key.Value != "error" || !strings.Contains(got.error, value.Value) {
				setScalar(value, parts[key.Value])
			}
		})
	case kindSnapshot:
		exact := isExact(e.want)
		eachPair(e.want, func(key, value *yaml.Node) {
			if v, ok := got.snapshot.Get(key.Value); ok {
				updateValue(value, v, exact)
			}
		})
	case kindRejected:
		setScalar(e.want, got.reason)
	default:
		setScalar(e.want, got.stage)
	}
}

// update makes an item of out expect this record. to is the pipeline's own output
// topic, which is the default of an item.
func (w *writtenRecord) update(item *yaml.Node, to string) {
	exact, topic := isExact(item), false
	eachPair(item, func(key, value *yaml.Node) {
		switch key.Value {
		case "topic":
			topic = true
			setScalar(value, w.topic)
		case "key":
			setScalar(value, w.key)
		case "event":
			updateValue(value, w.event, exact)
		case "headers":
			eachPair(value, func(name, value *yaml.Node) { updateValue(value, w.header(name.Value), exact) })
		}
	})
	if !topic && w.topic != to {
		item.Content = append([]*yaml.Node{textNode("topic"), textNode(w.topic)}, item.Content...)
	}
}

// updateValue makes a node expect a value. It never writes through an alias, because
// that would change the other uses of the anchor.
func updateValue(n *yaml.Node, got any, exact bool) {
	var d differ
	if d.value("", n, got, exact); len(d.found) == 0 {
		return
	}
	w := topology.Resolved(n)
	object, isObject := got.(cli.OrderedJSON)
	list, isList := got.([]any)
	switch {
	case w.Kind == yaml.MappingNode && isObject && n.Kind != yaml.AliasNode:
		var content []*yaml.Node
		named := map[string]bool{}
		eachPair(w, func(key, value *yaml.Node) {
			if v, ok := object.Get(key.Value); ok {
				named[key.Value] = true
				updateValue(value, v, exact)
				content = append(content, key, value)
			}
		})
		for _, f := range object {
			if exact && !named[f.Name] {
				content = append(content, textNode(f.Name), yamlNode(f.Value))
			}
		}
		w.Content = content
	case w.Kind == yaml.SequenceNode && isList && len(list) == len(w.Content) && n.Kind != yaml.AliasNode:
		for i, item := range w.Content {
			updateValue(item, list[i], exact)
		}
	default:
		replace(n, yamlNode(got))
	}
}

// replace replaces the value of a node and keeps its comments.
func replace(n, value *yaml.Node) {
	value.HeadComment, value.LineComment, value.FootComment = n.HeadComment, n.LineComment, n.FootComment
	*n = *value
}

func setScalar(n *yaml.Node, text string) {
	if n.Kind == yaml.ScalarNode && n.Value == text {
		return
	}
	replace(n, textNode(text))
}

// rewritten returns the text of the file for the current nodes. The YAML library
// drops blank lines, so rewritten copies those before cases and events from the
// original text.
func (f *caseFile) rewritten() ([]byte, error) {
	indented := len(f.cases) == 0 || f.cases[0].at.Column > 3
	text, err := yaml.Dump(f.doc, yaml.WithIndent(2), yaml.WithLineWidth(-1), yaml.WithCompactSeqIndent(!indented), yaml.WithUnicode(true))
	if err != nil {
		return nil, err
	}
	fresh, err := parseCases(f.name, text)
	if err != nil {
		return nil, fmt.Errorf("the updated file could not be parsed: %w", err)
	}
	var blank []int // indexes of lines in the new text that need a blank line before them
	mark := func(was, is *yaml.Node) {
		if i := headOf(f.lines, was.Line-1); i > 0 && strings.TrimSpace(f.lines[i-1]) == "" {
			if j := headOf(fresh.lines, is.Line-1); j > 0 && strings.TrimSpace(fresh.lines[j-1]) != "" {
				blank = append(blank, j)
			}
		}
	}
	for i, c := range f.cases {
		mark(c.at, fresh.cases[i].at)
		for j, e := range c.events {
			mark(e.at, fresh.cases[i].events[j].at)
		}
	}
	var b strings.Builder
	for i, line := range fresh.lines {
		if slices.Contains(blank, i) {
			b.WriteByte('\n')
		}
		b.WriteString(line + "\n")
	}
	return []byte(b.String()), nil
}

// headOf returns the index of the first comment line directly above line i, or i.
func headOf(lines []string, i int) int {
	for i > 0 && strings.HasPrefix(strings.TrimSpace(lines[i-1]), "#") {
		i--
	}
	return i
}

package cases

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline/cli"
	"millrace/pipeline/topology"
)

// A mismatch is one thing that is not as a case expects.
type mismatch struct {
	Line int    `json:"line"`
	Col  int    `json:"column"`
	Path string `json:"path"` // "out[0].event.data.name"; "" for the event as a whole
	Want string `json:"want"`
	Got  string `json:"got"`
}

// differ compares what is expected with what came.
type differ struct{ found []mismatch }

func (d *differ) differ(at *yaml.Node, path, want, got string) {
	d.found = append(d.found, mismatch{at.Line, at.Column, path, want, got})
}

// outcome compares what is expected of an event with what became of it.
func (d *differ) outcome(e *caseEvent, got *eventOutcome) {
	switch {
	case got.failed != nil:
		at := e.at
		if got.failedAt != nil {
			at = got.failedAt
		}
		d.differ(at, "", "an outcome", "it cannot be run: "+got.failed.Error())
	case e.kind == "":
		d.differ(e.at, "", "nothing is said; --update writes down what came", got.String())
	case e.kind != got.kind:
		d.differ(e.want, "", wantText(e), got.String())
	default:
		d.sameKind(e, got)
	}
}

func (d *differ) sameKind(e *caseEvent, got *eventOutcome) {
	switch e.kind {
	case kindOut:
		d.written(e, got)
	case kindFiltered, kindStopped:
		d.text(string(e.kind), e.want, got.stage)
	case kindRejected:
		d.text(string(e.kind), e.want, got.reason)
	case kindDeadLetter:
		parts := map[string]string{"stage": got.stage, "reason": got.reason}
		eachPair(e.want, func(key, value *yaml.Node) {
			if key.Value == "error" { // a part of it is enough: it is for people
				if !strings.Contains(got.error, value.Value) {
					d.differ(value, "dead_letter.error", "an error with "+cli.Quote(value.Value)+" in it", cli.Quote(got.error))
				}
				return
			}
			d.text("dead_letter."+key.Value, value, parts[key.Value])
		})
	case kindSnapshot:
		exact := isExact(e.want)
		eachPair(e.want, func(key, value *yaml.Node) {
			if key.Value != "exact" {
				v, _ := got.snapshot.Get(key.Value)
				d.value("snapshot."+key.Value, value, v, exact)
			}
		})
	}
}

func (d *differ) written(e *caseEvent, got *eventOutcome) {
	for i, item := range e.want.Content {
		path := fmt.Sprintf("out[%d]", i)
		if i >= len(got.out) {
			d.differ(item, path, "a record", fmt.Sprintf("only %s came out", cli.Plural(len(got.out), "record")))
			continue
		}
		exact := isExact(item)
		record := got.out[i]
		topic := false
		eachPair(item, func(key, value *yaml.Node) {
			switch key.Value {
			case "topic":
				topic = true
				d.text(path+".topic", value, record.topic)
			case "key":
				d.text(path+".key", value, record.key)
			case "event":
				d.value(path+".event", value, record.event, exact)
			case "headers":
				eachPair(value, func(name, value *yaml.Node) {
					d.value(path+".headers."+name.Value, value, record.header(name.Value), exact)
				})
			}
		})
		if !topic && record.topic != got.to {
			d.differ(item, path+".topic", got.to+", as none is named", record.topic)
		}
	}
	for i := len(e.want.Content); i < len(got.out); i++ {
		d.differ(e.want, fmt.Sprintf("out[%d]", i), "no more records", got.out[i].String())
	}
}

func (d *differ) text(path string, want *yaml.Node, got string) {
	if w := topology.Resolved(want); w.Value != got {
		d.differ(want, path, cli.Quote(w.Value), cli.Quote(got))
	}
}

// value compares a value. Unless exact is set, objects may have more fields than
// are named.
func (d *differ) value(path string, want *yaml.Node, got any, exact bool) {
	w := topology.Resolved(want)
	switch w.Kind {
	case yaml.MappingNode:
		object, ok := got.(cli.OrderedJSON)
		if !ok {
			d.differ(want, path, cli.CompactJSON(yamlValue(w)), cli.CompactJSON(got))
			return
		}
		named := map[string]bool{}
		eachPair(w, func(key, value *yaml.Node) {
			named[key.Value] = true
			if v, ok := object.Get(key.Value); ok {
				d.value(path+"."+key.Value, value, v, exact)
			} else {
				d.differ(key, path+"."+key.Value, cli.CompactJSON(yamlValue(value)), "it is not there")
			}
		})
		for _, f := range object {
			if exact && !named[f.Name] {
				d.differ(want, path+"."+f.Name, "that it is not there", cli.CompactJSON(f.Value))
			}
		}
	case yaml.SequenceNode:
		list, ok := got.([]any)
		if !ok || len(list) != len(w.Content) {
			d.differ(want, path, cli.CompactJSON(yamlValue(w)), cli.CompactJSON(got))
			return
		}
		for i, item := range w.Content {
			d.value(fmt.Sprintf("%s[%d]", path, i), item, list[i], exact)
		}
	default:
		if !sameScalar(w, got) {
			d.differ(want, path, cli.CompactJSON(yamlValue(w)), cli.CompactJSON(got))
		}
	}
}

// sameScalar compares single values: numbers by value, times by the moment.
func sameScalar(want *yaml.Node, got any) bool {
	w := yamlValue(want)
	switch got := got.(type) {
	case json.Number:
		w, ok := w.(json.Number)
		return ok && sameNumber(w.String(), got.String())
	case string:
		w, ok := w.(string)
		return ok && (w == got || sameMoment(w, got))
	}
	return w == got
}

func sameNumber(a, b string) bool {
	if a == b {
		return true
	}
	if !strings.ContainsAny(a+b, ".eE") {
		return false // whole numbers, which a float might not tell apart
	}
	x, err := strconv.ParseFloat(a, 64)
	y, err2 := strconv.ParseFloat(b, 64)
	return err == nil && err2 == nil && x == y
}

func sameMoment(a, b string) bool {
	x, err := time.Parse(time.RFC3339Nano, a)
	if err != nil {
		return false
	}
	y, err := time.Parse(time.RFC3339Nano, b)
	return err == nil && x.Equal(y)
}

// eachPair calls f with the keys of a mapping and their values.
func eachPair(n *yaml.Node, f func(key, value *yaml.Node)) {
	n = topology.Resolved(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		f(n.Content[i], n.Content[i+1])
	}
}

func pairOf(n *yaml.Node, name string) (found *yaml.Node) {
	eachPair(n, func(key, value *yaml.Node) {
		if key.Value == name {
			found = value
		}
	})
	return found
}

// isExact reports whether a mapping says exact: true.
func isExact(n *yaml.Node) bool {
	exact := topology.Resolved(pairOf(n, "exact"))
	return exact != nil && exact.Value == "true"
}

// wantText says what is expected of an event.
func wantText(e *caseEvent) string {
	switch e.kind {
	case kindOut:
		return "written: " + cli.Plural(len(e.want.Content), "record")
	case kindFiltered, kindStopped, kindRejected:
		return string(e.kind) + ": " + e.want.Value
	case kindDeadLetter, kindSnapshot:
		return string(e.kind) + ": " + cli.CompactJSON(yamlValue(e.want))
	}
	return string(e.kind)
}

// update makes the case expect what came, and reports whether that is something
// else. What is expected only in part stays so; comments stay.
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

// updateValue makes a node expect a value.
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

// replace puts a new value in the place of another, whose comments stay.
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

// rewritten returns the text of the file as its nodes are now. The blank lines
// before cases and events are those of the file as it was.
func (f *caseFile) rewritten() ([]byte, error) {
	indented := len(f.cases) == 0 || f.cases[0].at.Column > 3
	text, err := yaml.Dump(f.doc, yaml.WithIndent(2), yaml.WithLineWidth(-1), yaml.WithCompactSeqIndent(!indented), yaml.WithUnicode(true))
	if err != nil {
		return nil, err
	}
	fresh, err := parseCases(f.name, text)
	if err != nil {
		return nil, fmt.Errorf("what was to be written cannot be read back: %w", err)
	}
	var blank []int // lines of the new text, from 0, to put a blank one before
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

// headOf returns the line on which the comments above a line begin.
func headOf(lines []string, i int) int {
	for i > 0 && strings.HasPrefix(strings.TrimSpace(lines[i-1]), "#") {
		i--
	}
	return i
}

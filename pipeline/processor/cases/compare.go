package cases

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline/cli"
	"millrace/pipeline/topology"
)

// A mismatch is one difference between the expected and the actual outcome.
type mismatch struct {
	Line int    `json:"line"`
	Col  int    `json:"column"`
	Path string `json:"path"` // "out[0].event.data.name"; "" for the event as a whole
	Want string `json:"want"`
	Got  string `json:"got"`
}

// A differ compares expected outcomes with actual ones and collects the
// differences.
type differ struct{ found []mismatch }

func (d *differ) add(at *yaml.Node, path, want, got string) {
	d.found = append(d.found, mismatch{at.Line, at.Column, path, want, got})
}

// outcome compares the expected outcome of an event with the actual one.
func (d *differ) outcome(e *caseEvent, got *eventOutcome) {
	switch {
	case got.failed != nil:
		at := e.at
		if got.failedAt != nil {
			at = got.failedAt
		}
		d.add(at, "", "an outcome", "the event cannot be run: "+got.failed.Error())
	case e.kind == "":
		d.add(e.at, "", "no outcome is declared; --update adds the actual one", got.String())
	case e.kind != got.kind:
		d.add(e.want, "", wantText(e), got.String())
	default:
		d.sameKind(e, got)
	}
}

// sameKind compares the details of two outcomes of the same kind.
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
			if key.Value == "error" { // the case holds a part: the exact text is for human readers
				if !strings.Contains(got.error, value.Value) {
					d.add(value, "dead_letter.error", "an error with "+cli.Quote(value.Value)+" in it", cli.Quote(got.error))
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

// written compares the records of out by position.
func (d *differ) written(e *caseEvent, got *eventOutcome) {
	for i, item := range e.want.Content {
		path := fmt.Sprintf("out[%d]", i)
		if i >= len(got.out) {
			d.add(item, path, "a record", fmt.Sprintf("only %s came out", cli.Plural(len(got.out), "record")))
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
				d.value(path+".event", value, record.value(), exact)
			case "headers":
				eachPair(value, func(name, value *yaml.Node) {
					d.value(path+".headers."+name.Value, value, record.header(name.Value), exact)
				})
			}
		})
		if !topic && record.topic != got.to {
			d.add(item, path+".topic", got.to+", the default", record.topic)
		}
	}
	for i := len(e.want.Content); i < len(got.out); i++ {
		d.add(e.want, fmt.Sprintf("out[%d]", i), "no more records", got.out[i].String())
	}
}

func (d *differ) text(path string, want *yaml.Node, got string) {
	if w := topology.Resolved(want); w.Value != got {
		d.add(want, path, cli.Quote(w.Value), cli.Quote(got))
	}
}

// value compares a value. Unless exact is set, actual objects may have fields that
// the case does not name.
func (d *differ) value(path string, want *yaml.Node, got any, exact bool) {
	w := topology.Resolved(want)
	switch w.Kind {
	case yaml.MappingNode:
		object, ok := got.(cli.OrderedJSON)
		if !ok {
			d.add(want, path, cli.CompactJSON(yamlValue(w)), cli.CompactJSON(got))
			return
		}
		named := map[string]bool{}
		eachPair(w, func(key, value *yaml.Node) {
			named[key.Value] = true
			if v, ok := object.Get(key.Value); ok {
				d.value(path+"."+key.Value, value, v, exact)
			} else {
				d.add(key, path+"."+key.Value, cli.CompactJSON(yamlValue(value)), "no such field")
			}
		})
		for _, f := range object {
			if exact && !named[f.Name] {
				d.add(want, path+"."+f.Name, "no such field", cli.CompactJSON(f.Value))
			}
		}
	case yaml.SequenceNode:
		list, ok := got.([]any)
		if !ok || len(list) != len(w.Content) {
			d.add(want, path, cli.CompactJSON(yamlValue(w)), cli.CompactJSON(got))
			return
		}
		for i, item := range w.Content {
			d.value(fmt.Sprintf("%s[%d]", path, i), item, list[i], exact)
		}
	default:
		if !sameScalar(w, got) {
			d.add(want, path, cli.CompactJSON(yamlValue(w)), cli.CompactJSON(got))
		}
	}
}

// sameScalar compares scalars: numbers by value, times by the instant.
func sameScalar(want *yaml.Node, got any) bool {
	w := yamlValue(want)
	switch got := got.(type) {
	case json.Number:
		w, ok := w.(json.Number)
		return ok && sameNumber(w.String(), got.String())
	case string:
		w, ok := w.(string)
		return ok && (w == got || sameInstant(w, got))
	}
	return w == got
}

func sameNumber(a, b string) bool {
	if a == b {
		return true
	}
	if !strings.ContainsAny(a+b, "eE") && (!strings.Contains(a, ".") || !strings.Contains(b, ".")) {
		// An integer: a float64 could round different ones to the same value.
		x, ok := new(big.Rat).SetString(a)
		y, ok2 := new(big.Rat).SetString(b)
		return ok && ok2 && x.Cmp(y) == 0
	}
	x, err := strconv.ParseFloat(a, 64)
	y, err2 := strconv.ParseFloat(b, 64)
	return err == nil && err2 == nil && x == y
}

func sameInstant(a, b string) bool {
	x, err := time.Parse(time.RFC3339Nano, a)
	if err != nil {
		return false
	}
	y, err := time.Parse(time.RFC3339Nano, b)
	return err == nil && x.Equal(y)
}

// eachPair calls f for each key of a mapping with its value.
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

// isExact reports whether a mapping has exact: true.
func isExact(n *yaml.Node) bool {
	exact := topology.Resolved(pairOf(n, "exact"))
	return exact != nil && exact.Value == "true"
}

// wantText describes the expected outcome in messages.
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

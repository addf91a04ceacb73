package cases

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/expr"
	"millrace/pipeline/topology"
)

// A caseFile is a parsed case file. It keeps the YAML nodes: they hold the places
// for messages, and --update changes them.
type caseFile struct {
	name  string
	text  []byte
	lines []string // without line ends
	doc   *yaml.Node
	cases []*testCase

	faults topology.Faults // found by the parser so far
}

// A testCase is one case: the input events in order, each with its expected
// outcome.
type testCase struct {
	file       *caseFile
	at         *yaml.Node
	name       string
	pipeline   *yaml.Node // nil if not given
	projection *yaml.Node // nil if not given
	now        time.Time
	tables     []caseTable
	answers    []caseAnswer
	events     []*caseEvent
}

// A caseTable holds the rows of one table.
type caseTable struct {
	name *yaml.Node
	rows []*yaml.Node // key, row, key, row, ...
}

// A caseAnswer is the response of a service to one request.
type caseAnswer struct {
	method, url string
	status      int
	body        []byte
}

// A caseEvent is one event of a case.
type caseEvent struct {
	at      *yaml.Node // the event's mapping
	in      *yaml.Node // the event as JSON; nil if it is given as bytes
	raw     []byte     // the record's value if in is nil; nil is a tombstone
	typ     *yaml.Node // nil if not given
	writer  *yaml.Node // name of the writer's schema; nil if not given
	key     *yaml.Node // nil if not given
	headers []pipeline.Header
	time    time.Time // zero if not given

	kind outcomeKind // the expected outcome; "" if the case declares none
	want *yaml.Node  // value of the expectation, under the key kind
}

// An outcomeKind is the outcome of an event, as the key in a case file.
type outcomeKind string

const (
	// Outcomes in a pipeline.
	kindOut        outcomeKind = "out" // written; the value lists the records
	kindFiltered   outcomeKind = "filtered"
	kindDeadLetter outcomeKind = "dead_letter"
	kindStopped    outcomeKind = "stopped" // a stage with on_error: stop stopped the worker

	// Outcomes in a projection.
	kindSnapshot  outcomeKind = "snapshot" // folded; the value is the aggregate after the event
	kindIgnored   outcomeKind = "ignored"  // the projection does not fold this type
	kindLate      outcomeKind = "late"     // the aggregate is deleted
	kindDuplicate outcomeKind = "duplicate"
	kindRejected  outcomeKind = "rejected" // the fold failed
)

var (
	pipelineKinds   = []outcomeKind{kindOut, kindFiltered, kindDeadLetter, kindStopped}
	projectionKinds = []outcomeKind{kindSnapshot, kindIgnored, kindLate, kindDuplicate, kindRejected}
)

// caseNow is the time of a case that does not set now.
var caseNow = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// maxCaseFile is the maximum size of a case file in bytes.
const maxCaseFile = 8 << 20

// parseCases parses a case file. An error is a [topology.Faults] with all faults of
// the file, sorted by place.
func parseCases(name string, text []byte) (*caseFile, error) {
	f := &caseFile{name: name, text: text, doc: &yaml.Node{}}
	for line := range strings.Lines(string(text)) {
		f.lines = append(f.lines, strings.TrimRight(line, "\r\n"))
	}
	if len(text) > maxCaseFile {
		return nil, topology.Faults{{File: name, Msg: fmt.Sprintf("the file has %d bytes, more than the maximum of %d", len(text), maxCaseFile), Hint: "split the file"}}
	}
	if err := yaml.Load(text, f.doc, yaml.WithSingleDocument()); err != nil {
		return nil, topology.Faults{f.syntax(err)}
	}
	if f.doc.Kind != yaml.DocumentNode || len(f.doc.Content) != 1 {
		return nil, topology.Faults{{File: name, Msg: "the file is empty", Hint: "cases: [{name: ..., events: [...]}]"}}
	}
	root := f.mapping(f.doc.Content[0], "a case file", "cases")
	for _, n := range f.list(root["cases"], "cases") {
		f.cases = append(f.cases, f.testCase(n))
	}
	if len(f.faults) == 0 && len(f.cases) == 0 {
		f.fault(f.doc.Content[0], "cases: [{name: ..., events: [...]}]", "the file has no cases")
	}
	if len(f.faults) > 0 {
		slices.SortStableFunc(f.faults, func(a, b topology.Fault) int { return cmp.Or(a.Line-b.Line, a.Col-b.Col) })
		return nil, f.faults
	}
	return f, nil
}

// syntax returns the fault for an error of the YAML parser.
func (f *caseFile) syntax(err error) topology.Fault {
	var load *yaml.LoadError
	if errors.As(err, &load) && load.Mark.Line > 0 {
		return f.faultAt(load.Mark.Line, max(1, load.Mark.Column), "", "invalid YAML: %s", load.Message)
	}
	return topology.Fault{File: f.name, Msg: "invalid YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
}

func (f *caseFile) fault(n *yaml.Node, hint, format string, args ...any) {
	f.faults = append(f.faults, f.faultAt(n.Line, n.Column, hint, format, args...))
}

func (f *caseFile) faultAt(line, col int, hint, format string, args ...any) topology.Fault {
	fault := topology.Fault{File: f.name, Line: line, Col: col, Msg: fmt.Sprintf(format, args...), Hint: hint}
	if line >= 1 && line <= len(f.lines) {
		fault.Text = f.lines[line-1]
	}
	return fault
}

// mapping returns the values of a mapping by key. Any other key than names is a
// fault. A nil node is an empty mapping. what names the mapping in messages.
func (f *caseFile) mapping(n *yaml.Node, what string, names ...string) map[string]*yaml.Node {
	out := map[string]*yaml.Node{}
	if n = topology.Resolved(n); n == nil {
		return out
	}
	if n.Kind != yaml.MappingNode {
		f.fault(n, allowedKeys(names), "%s must be a mapping", what)
		return out
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if !slices.Contains(names, key.Value) {
			hint := expr.Suggest(key.Value, names)
			if hint == "" {
				hint = allowedKeys(names)
			}
			f.fault(key, hint, "%s has no key %q", what, key.Value)
			continue
		}
		out[key.Value] = n.Content[i+1]
	}
	return out
}

func allowedKeys(names []string) string { return "allowed keys: " + strings.Join(names, ", ") }

// pairs returns the keys and values of a mapping with arbitrary keys: key, value,
// key, value, ...
func (f *caseFile) pairs(n *yaml.Node, what string) []*yaml.Node {
	if n = topology.Resolved(n); n == nil {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		f.fault(n, "", "%s must be a mapping", what)
		return nil
	}
	return n.Content
}

func (f *caseFile) list(n *yaml.Node, what string) []*yaml.Node {
	if n = topology.Resolved(n); n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		f.fault(n, "start each item with a dash", "%s must be a list", what)
		return nil
	}
	return n.Content
}

// value returns the text of a scalar, or "" if there is none.
func (f *caseFile) value(n *yaml.Node, what string) string {
	if n = topology.Resolved(n); n == nil {
		return ""
	}
	if n.Kind != yaml.ScalarNode {
		f.fault(n, "", "%s must be a single value", what)
		return ""
	}
	return n.Value
}

func (f *caseFile) timestamp(n *yaml.Node, what string, defaultTo time.Time) time.Time {
	text := f.value(n, what)
	if text == "" {
		return defaultTo
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		f.fault(n, "such as 2026-01-31T12:00:00Z", "%s must be a time in RFC 3339 format, not %q", what, text)
	}
	return at
}

func (f *caseFile) testCase(n *yaml.Node) *testCase {
	n = topology.Resolved(n)
	m := f.mapping(n, "a case", "name", "pipeline", "projection", "now", "tables", "http", "events")
	c := &testCase{
		file: f, at: n, name: f.value(m["name"], "name"), now: f.timestamp(m["now"], "now", caseNow),
		pipeline: topology.Resolved(m["pipeline"]), projection: topology.Resolved(m["projection"]),
	}
	if c.name == "" {
		f.fault(n, "add name: WHAT THE CASE SHOWS", "the case has no name")
	}
	if c.pipeline != nil && c.projection != nil {
		f.fault(c.projection, "split the case", "a case runs a pipeline or a projection, not both")
	}
	tables := f.pairs(m["tables"], "tables")
	for i := 0; i+1 < len(tables); i += 2 {
		c.tables = append(c.tables, caseTable{tables[i], f.pairs(tables[i+1], "a table in tables")})
	}
	for _, answer := range f.list(m["http"], "http") {
		c.answers = append(c.answers, f.answer(answer))
	}
	for _, event := range f.list(m["events"], "events") {
		c.events = append(c.events, f.event(event, c))
	}
	if len(c.events) == 0 {
		f.fault(n, "events: [{in: {...}, out: [...]}]", "the case has no events")
	}
	return c
}

func (f *caseFile) answer(n *yaml.Node) caseAnswer {
	m := f.mapping(n, "a response in http", "method", "url", "status", "body")
	a := caseAnswer{method: cmp.Or(f.value(m["method"], "method"), http.MethodGet), url: f.value(m["url"], "url"), status: http.StatusOK}
	if a.url == "" {
		f.fault(n, "add url: the URL of the request, with its query", "the response has no url")
	}
	if text := f.value(m["status"], "status"); text != "" {
		var err error
		if a.status, err = strconv.Atoi(text); err != nil || a.status < 100 || a.status > 999 {
			f.fault(m["status"], "such as 404", "%q is not an HTTP status", text)
		}
	}
	switch body := topology.Resolved(m["body"]); {
	case body == nil:
	case body.Kind == yaml.ScalarNode && body.Tag == "!!str":
		a.body = []byte(body.Value)
	default:
		a.body = []byte(cli.CompactJSON(yamlValue(body)))
	}
	return a
}

func (f *caseFile) event(n *yaml.Node, c *testCase) *caseEvent {
	n = topology.Resolved(n)
	kinds := pipelineKinds
	if c.projection != nil {
		kinds = projectionKinds
	}
	names := []string{"in", "raw", "type", "writer", "key", "headers", "time"}
	for _, k := range kinds {
		names = append(names, string(k))
	}
	m := f.mapping(n, "an event", names...)
	e := &caseEvent{
		at: n, in: topology.Resolved(m["in"]), typ: topology.Resolved(m["type"]), writer: topology.Resolved(m["writer"]),
		key: topology.Resolved(m["key"]), time: f.timestamp(m["time"], "time", time.Time{}),
	}
	switch raw, given := m["raw"]; {
	case given == (e.in != nil):
		f.fault(n, "use in: {...} for an event as JSON, or raw: {hex: ...} for bytes", "an event needs either in or raw")
	case given:
		e.raw = f.bytes(topology.Resolved(raw))
	}
	headers := f.pairs(m["headers"], "headers")
	for i := 0; i+1 < len(headers); i += 2 {
		e.headers = append(e.headers, pipeline.Header{Key: headers[i].Value, Value: []byte(f.value(headers[i+1], "a header"))})
	}
	for _, k := range kinds {
		want, given := m[string(k)]
		switch {
		case given && e.kind != "":
			f.fault(want, "keep one of them", "an event has one outcome, not both %s and %s", e.kind, k)
		case given:
			e.kind, e.want = k, topology.Resolved(want)
			f.checkWant(e)
		}
	}
	return e
}

// bytes returns the value of a record that is given as bytes. Nil is a tombstone.
func (f *caseFile) bytes(n *yaml.Node) []byte {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	m := f.mapping(n, "raw", "hex", "base64", "text")
	if len(m) != 1 {
		f.fault(n, "such as raw: {hex: 00 00 00}; raw: null is a tombstone", "raw needs exactly one of hex, base64 and text")
		return nil
	}
	out, err := []byte{}, error(nil)
	for form, value := range m {
		text := f.value(value, form)
		switch form {
		case "hex":
			out, err = hex.DecodeString(strings.Join(strings.Fields(text), ""))
		case "base64":
			out, err = base64.StdEncoding.DecodeString(text)
		default:
			out = append(out, text...)
		}
		if err != nil {
			f.fault(value, "", "%s: %v", form, err)
		}
	}
	return out
}

// checkWant checks the form of the expected outcome.
func (f *caseFile) checkWant(e *caseEvent) {
	switch e.kind {
	case kindOut:
		for _, item := range f.list(e.want, "out") {
			f.mapping(item, "a record in out", "topic", "key", "headers", "event", "exact")
		}
	case kindDeadLetter:
		f.mapping(e.want, "dead_letter", "stage", "reason", "error")
	case kindSnapshot:
		f.mapping(e.want, "snapshot", "id", "version", "status", "state", "exact")
	default:
		f.value(e.want, string(e.kind))
	}
}

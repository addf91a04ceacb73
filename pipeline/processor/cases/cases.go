package cases

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
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

// A caseFile holds cases for `processor test`. Its nodes are kept: they say
// where things stand, and --update changes them.
type caseFile struct {
	name  string
	text  []byte
	lines []string
	doc   *yaml.Node
	cases []*testCase

	faults topology.Faults
}

// testCase is one case: events that go in, in order, and what becomes of each.
type testCase struct {
	file       *caseFile
	at         *yaml.Node
	name       string
	pipeline   *yaml.Node // these are nil if not given
	projection *yaml.Node
	now        time.Time
	tables     []caseTable
	answers    []caseAnswer
	events     []*caseEvent
}

// caseTable gives a table its rows.
type caseTable struct {
	name *yaml.Node
	rows []*yaml.Node // key, row, key, row, ...
}

// caseAnswer is what a service answers to one request.
type caseAnswer struct {
	method, url string
	status      int
	body        []byte
}

// caseEvent is one event of a case.
type caseEvent struct {
	at      *yaml.Node // the mapping that it is
	in      *yaml.Node // in its JSON form; nil if it is given as bytes
	raw     []byte     // nil is a tombstone
	typ     *yaml.Node // these are nil if not given
	writer  *yaml.Node
	key     *yaml.Node
	headers []pipeline.Header
	time    time.Time

	kind outcomeKind // what is expected; "" if nothing is said
	want *yaml.Node
}

// An outcomeKind is what can become of an event, as cases name it.
type outcomeKind string

const (
	kindOut        outcomeKind = "out" // written, as a list of what to where
	kindFiltered   outcomeKind = "filtered"
	kindDeadLetter outcomeKind = "dead_letter"
	kindStopped    outcomeKind = "stopped" // the worker, by a stage with on_error: stop

	kindSnapshot  outcomeKind = "snapshot" // of the aggregate, after the event
	kindIgnored   outcomeKind = "ignored"  // the projection is not about it
	kindLate      outcomeKind = "late"     // the aggregate is deleted
	kindDuplicate outcomeKind = "duplicate"
	kindRejected  outcomeKind = "rejected" // it cannot be folded
)

var (
	pipelineKinds   = []outcomeKind{kindOut, kindFiltered, kindDeadLetter, kindStopped}
	projectionKinds = []outcomeKind{kindSnapshot, kindIgnored, kindLate, kindDuplicate, kindRejected}
)

// The clock of a case that does not set it.
var caseNow = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// maxCaseFile bounds a file of cases, in bytes.
const maxCaseFile = 8 << 20

// parseCases reads a file of cases. An error is topology.Faults: all there are.
func parseCases(name string, text []byte) (*caseFile, error) {
	f := &caseFile{name: name, text: text, doc: &yaml.Node{}}
	for line := range strings.Lines(string(text)) {
		f.lines = append(f.lines, strings.TrimRight(line, "\r\n"))
	}
	if len(text) > maxCaseFile {
		return nil, topology.Faults{{File: name, Msg: fmt.Sprintf("%d bytes: a file of cases has at most %d", len(text), maxCaseFile), Hint: "split it"}}
	}
	if err := yaml.Load(text, f.doc, yaml.WithSingleDocument()); err != nil {
		return nil, topology.Faults{f.syntax(err)}
	}
	if f.doc.Kind != yaml.DocumentNode || len(f.doc.Content) != 1 {
		return nil, topology.Faults{{File: name, Msg: "the file is empty", Hint: "cases: [{name: ..., events: [...]}]"}}
	}
	root := f.mapping(f.doc.Content[0], "a file of cases", "cases")
	for _, n := range f.list(root["cases"], "cases") {
		f.cases = append(f.cases, f.testCase(n))
	}
	if len(f.faults) == 0 && len(f.cases) == 0 {
		f.fault(f.doc.Content[0], "cases: [{name: ..., events: [...]}]", "there are no cases")
	}
	if len(f.faults) > 0 {
		slices.SortStableFunc(f.faults, func(a, b topology.Fault) int { return cmp.Or(a.Line-b.Line, a.Col-b.Col) })
		return nil, f.faults
	}
	return f, nil
}

func (f *caseFile) syntax(err error) topology.Fault {
	var load *yaml.LoadError
	if errors.As(err, &load) && load.Mark.Line > 0 {
		return f.faultAt(load.Mark.Line, max(1, load.Mark.Column), "", "this is not YAML: %s", load.Message)
	}
	return topology.Fault{File: f.name, Msg: "this is not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
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

// mapping returns the values of a mapping that may have these names. A nil node
// is an empty one.
func (f *caseFile) mapping(n *yaml.Node, what string, names ...string) map[string]*yaml.Node {
	out := map[string]*yaml.Node{}
	if n = topology.Resolved(n); n == nil {
		return out
	}
	if n.Kind != yaml.MappingNode {
		f.fault(n, "it has "+strings.Join(names, ", "), "%s is a mapping, but here is something else", what)
		return out
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if !slices.Contains(names, key.Value) {
			hint := expr.Nearest(key.Value, names)
			if hint == "" {
				hint = "it has " + strings.Join(names, ", ")
			}
			f.fault(key, hint, "%s has no %q", what, key.Value)
			continue
		}
		out[key.Value] = n.Content[i+1]
	}
	return out
}

// pairs returns the keys and values of a mapping of any names, one after the
// other.
func (f *caseFile) pairs(n *yaml.Node, what string) []*yaml.Node {
	if n = topology.Resolved(n); n == nil {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		f.fault(n, "", "%s is a mapping, but here is something else", what)
		return nil
	}
	return n.Content
}

func (f *caseFile) list(n *yaml.Node, what string) []*yaml.Node {
	if n = topology.Resolved(n); n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		f.fault(n, "each begins with a dash", "%s is a list, but here is something else", what)
		return nil
	}
	return n.Content
}

// value returns the text of a single value, "" if there is none.
func (f *caseFile) value(n *yaml.Node, what string) string {
	if n = topology.Resolved(n); n == nil {
		return ""
	}
	if n.Kind != yaml.ScalarNode {
		f.fault(n, "", "%s is a single value, but here is something else", what)
		return ""
	}
	return n.Value
}

func (f *caseFile) moment(n *yaml.Node, what string, otherwise time.Time) time.Time {
	text := f.value(n, what)
	if text == "" {
		return otherwise
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		f.fault(n, "such as 2026-01-31T12:00:00Z", "%s is a time in RFC 3339, but here is %q", what, text)
	}
	return at
}

func (f *caseFile) testCase(n *yaml.Node) *testCase {
	n = topology.Resolved(n)
	m := f.mapping(n, "a case", "name", "pipeline", "projection", "now", "tables", "http", "events")
	c := &testCase{file: f, at: n, name: f.value(m["name"], "name"), pipeline: topology.Resolved(m["pipeline"]), projection: topology.Resolved(m["projection"]), now: f.moment(m["now"], "now", caseNow)}
	if c.name == "" {
		f.fault(n, "name: what the case shows", "a case has a name")
	}
	if c.pipeline != nil && c.projection != nil {
		f.fault(c.projection, "make two cases", "a case is for a pipeline or for a projection, not for both")
	}
	tables := f.pairs(m["tables"], "tables")
	for i := 0; i+1 < len(tables); i += 2 {
		c.tables = append(c.tables, caseTable{tables[i], f.pairs(tables[i+1], "a table's rows, by key,")})
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
	m := f.mapping(n, "an answer", "method", "url", "status", "body")
	a := caseAnswer{method: cmp.Or(f.value(m["method"], "method"), http.MethodGet), url: f.value(m["url"], "url"), status: http.StatusOK}
	if a.url == "" {
		f.fault(n, "url: what is asked, with its query", "an answer has a url")
	}
	if text := f.value(m["status"], "status"); text != "" {
		var err error
		if a.status, err = strconv.Atoi(text); err != nil || a.status < 100 || a.status > 999 {
			f.fault(m["status"], "such as 404", "%q is no status", text)
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
	e := &caseEvent{at: n, in: topology.Resolved(m["in"]), typ: topology.Resolved(m["type"]), writer: topology.Resolved(m["writer"]), key: topology.Resolved(m["key"]), time: f.moment(m["time"], "time", time.Time{})}
	switch raw, given := m["raw"]; {
	case given == (e.in != nil):
		f.fault(n, "in: {...} for an event in its JSON form, or raw: {hex: ...} for bytes", "an event has in or raw")
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
			f.fault(want, "keep one of them", "an event becomes one thing, not %s and %s", e.kind, k)
		case given:
			e.kind, e.want = k, topology.Resolved(want)
			f.checkWant(e)
		}
	}
	return e
}

// bytes returns the bytes that a record's value is given as; nil is a tombstone.
func (f *caseFile) bytes(n *yaml.Node) []byte {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	m := f.mapping(n, "raw", "hex", "base64", "text")
	if len(m) != 1 {
		f.fault(n, "raw: {hex: 00 00 00}; raw: null is a tombstone", "raw has one of hex, base64 and text")
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

// checkWant checks the form of an expectation.
func (f *caseFile) checkWant(e *caseEvent) {
	switch e.kind {
	case kindOut:
		for _, item := range f.list(e.want, "out") {
			f.mapping(item, "an item of out", "topic", "key", "headers", "event", "exact")
		}
	case kindDeadLetter:
		f.mapping(e.want, "dead_letter", "stage", "reason", "error")
	case kindSnapshot:
		f.mapping(e.want, "snapshot", "id", "version", "status", "state", "exact")
	default:
		f.value(e.want, string(e.kind))
	}
}

// yamlValue returns a node as encoding/json would give it, numbers as
// json.Number. Times are texts.
func yamlValue(n *yaml.Node) any {
	n = topology.Resolved(n)
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[topology.Resolved(n.Content[i]).Value] = yamlValue(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, item := range n.Content {
			list[i] = yamlValue(item)
		}
		return list
	}
	switch n.Tag {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!int", "!!float":
		if number, ok := jsonNumber(n.Value); ok {
			return number
		}
	}
	return n.Value
}

// jsonNumber returns a number of YAML as one of JSON.
func jsonNumber(text string) (json.Number, bool) {
	if json.Valid([]byte(text)) {
		return json.Number(text), true
	}
	if n, err := strconv.ParseInt(text, 0, 64); err == nil {
		return json.Number(strconv.FormatInt(n, 10)), true
	}
	x, err := strconv.ParseFloat(text, 64)
	if err != nil || x != x || x > 1e308 || x < -1e308 {
		return "", false // .nan and .inf: as text
	}
	return json.Number(strconv.FormatFloat(x, 'g', -1, 64)), true
}

// nodeAt returns the node under a path such as data.items[1].price, or the
// nearest one around it.
func nodeAt(n *yaml.Node, path string) *yaml.Node {
	path = strings.NewReplacer("[", ".[", "]", "").Replace(path)
	for step := range strings.SplitSeq(path, ".") {
		n = topology.Resolved(n)
		next := (*yaml.Node)(nil)
		if index, ok := strings.CutPrefix(step, "["); ok && n.Kind == yaml.SequenceNode {
			if i, err := strconv.Atoi(index); err == nil && i >= 0 && i < len(n.Content) {
				next = n.Content[i]
			}
		}
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				next = n.Content[i+1]
			}
		}
		if next == nil {
			break
		}
		n = next
	}
	return n
}

// yamlNode returns a value of JSON as a node. Objects of single values are set
// on one line.
func yamlNode(v any) *yaml.Node {
	switch v := v.(type) {
	case nil:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v)}
	case json.Number:
		tag := "!!int"
		if strings.ContainsAny(v.String(), ".eE") {
			tag = "!!float"
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: v.String()}
	case []any:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, item := range v {
			n.Content = append(n.Content, yamlNode(item))
		}
		if len(v) == 0 {
			n.Style = yaml.FlowStyle
		}
		return n
	case cli.OrderedJSON:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Style: yaml.FlowStyle}
		for _, f := range v {
			value := yamlNode(f.Value)
			if value.Kind != yaml.ScalarNode {
				n.Style = 0
			}
			n.Content = append(n.Content, textNode(f.Name), value)
		}
		return n
	}
	return textNode(fmt.Sprint(v))
}

func textNode(text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
}

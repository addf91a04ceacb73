package stage_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/schemas"
)

// A testCase runs events (JSON) through stages in the syntax of topology.yaml. It
// expects one line per event:
//
//	=                                   passes unchanged
//	data.n=3 metadata.a="b" -data.x     passes with these fields changed or removed
//	key "u-1" to shop.orders            passes with a new key and topic
//	filtered
//	reject assert: not true: a > b
//
// " | " separates the results of a split event.
type testCase struct {
	name   string
	stages string            // one stage, or a list with dashes
	in     []string          // events
	want   []string          // the result of each event
	env    map[string]string // for ${VAR}
}

// check runs test cases.
func check(t *testing.T, cases []testCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRunner(t, c.stages, c.env)
			if len(c.in) != len(c.want) {
				t.Fatalf("the case has %d events, but %d results", len(c.in), len(c.want))
			}
			for range 2 { // the second time, memory is reused
				r.checkEvents(t, c.in, c.want)
			}
		})
	}
}

func (r *runner) checkEvents(t *testing.T, events, want []string) {
	t.Helper()
	for i, event := range events {
		if got := r.run(t, event); got != want[i] {
			t.Errorf("event %d\ngot  %s\nwant %s", i, got, want[i])
		}
	}
}

// A badCase is a stage with faults. want holds one line per fault: the text at its
// position, the message and the hint.
type badCase struct{ name, stages, want string }

func checkBad(t *testing.T, cases []badCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { checkBadOf(t, c, stage.Builtin()) })
	}
}

func checkBadOf(t *testing.T, c badCase, kinds map[string]stage.Kind) {
	t.Helper()
	_, err := loadStages(t, c.stages, nil, kinds)
	if err == nil {
		t.Fatal("the topology loaded without a fault")
	}
	var faults topology.Faults
	if !errors.As(err, &faults) {
		t.Fatalf("error of type %T, want topology.Faults", err)
	}
	var lines []string
	for _, f := range faults {
		at := []rune(f.Text)[max(0, f.Col-1):]
		line := fmt.Sprintf("%s ^ %s", string(at[:min(len(at), 12)]), f.Msg)
		if f.Hint != "" {
			line += "; " + f.Hint
		}
		lines = append(lines, line)
	}
	if got := strings.Join(lines, "\n"); got != strings.TrimSpace(c.want) {
		t.Errorf("got\n%s\nwant\n%s", got, strings.TrimSpace(c.want))
	}
}

// files returns the shipped schemas and the schemas in testdata.
func files(t testing.TB) fs.FS {
	t.Helper()
	out := fstest.MapFS{}
	for _, from := range []fs.FS{schemas.FS, os.DirFS("testdata/schemas")} {
		names, err := fs.Glob(from, "*.avsc")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := fs.ReadFile(from, name)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = &fstest.MapFile{Data: text}
		}
	}
	return out
}

// now is the value of now() in expressions.
var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// around is the topology around the stages of a test.
const around = `name: test
topics:
  shop.events: {partitions: 4, types: [UserCreated, UserUpdated, UserDeleted, OrderCreated, OrderPaid, OrderShipped, Sampled]}
  shop.enriched: {partitions: 4}
  shop.orders: {partitions: 4}
  shop.users: {partitions: 4}
  shop.large: {partitions: 4}
  shop.dead_letters: {partitions: 4}
tables:
  users: {topic: shop.user.snapshots}
projections:
  user:
    from: shop.events
    key: data.id
    state: User
    on: {UserCreated: {set: {id: data.id, email: data.email, name: data.name}}}
    snapshots: shop.user.snapshots
pipelines:
  test:
    from: shop.events
    to: shop.enriched
    dead_letter: shop.dead_letters
    stages:
`

// loadStages loads a topology with the stages. A single stage needs no dash.
func loadStages(t testing.TB, stages string, env map[string]string, kinds map[string]stage.Kind) (*topology.Pipeline, error) {
	t.Helper()
	stages = strings.Trim(stages, "\n")
	if !strings.HasPrefix(stages, "- ") {
		stages = "- " + strings.ReplaceAll(stages, "\n", "\n  ")
	}
	stages = "      " + strings.ReplaceAll(stages, "\n", "\n      ")
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(around + stages + "\n")}, topology.Options{
		Schemas: files(t), Stages: kinds, Clock: func() time.Time { return now },
		LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		File:      os.ReadFile,
	})
	if err != nil {
		return nil, err
	}
	return plan.Pipelines[0], nil
}

// A runner runs events through the stages of a pipeline.
type runner struct {
	plan  *topology.Pipeline
	chain *pipeline.Chain
	event pipeline.Event
}

func newRunner(t testing.TB, stages string, env map[string]string) *runner {
	t.Helper()
	return newRunnerOf(t, stages, env, stage.Builtin())
}

func newRunnerOf(t testing.TB, stages string, env map[string]string, kinds map[string]stage.Kind) *runner {
	t.Helper()
	plan, err := loadStages(t, stages, env, kinds)
	if err != nil {
		t.Fatal(err)
	}
	return &runner{plan: plan, chain: plan.Chain()}
}

// decode fills e from a body like the processor does.
func (r *runner) decode(e *pipeline.Event, typ int, body []byte, key string) error {
	e.Record = &pipeline.Record{Topic: "shop.events", Key: []byte(key), Value: body, Time: now}
	e.Type, e.NewKey, e.To, e.OldType, e.Arena = typ, nil, nil, -1, e.Arena[:0]
	return r.plan.Layouts[typ].Walk(body, &e.View)
}

// encode returns the type and the body of a JSON event.
func (r *runner) encode(t testing.TB, text string) (typ int, body []byte) {
	t.Helper()
	value := parseJSON(t, text).(map[string]any)
	typ = slices.IndexFunc(r.plan.Types, func(s *codec.Schema) bool { return s.Name() == "shop."+value["type"].(string) })
	if typ < 0 {
		t.Fatalf("no type %v", value["type"])
	}
	body, err := codec.EncodeJSON(r.plan.Types[typ], value)
	if err != nil {
		t.Fatal(err)
	}
	return typ, body
}

// written returns an event for run that was written with an older schema.
func written(shape, event string) string { return shape + " " + event }

// run runs one event through the stages and describes the result, see testCase.
func (r *runner) run(t testing.TB, text string) string {
	t.Helper()
	shape, event, old := strings.Cut(text, " {")
	e := &r.event
	var typ int
	var body []byte
	if old = old && shape != ""; old {
		typ, body = r.resolve(t, shape, "{"+event)
	} else {
		typ, body = r.encode(t, text)
	}
	before := bytes.Clone(body)
	if err := r.decode(e, typ, body, "k-1"); err != nil {
		t.Fatal(err)
	}
	if old {
		r.setOld(t, e, shape, "{"+event)
	}
	was := flatten(t, r.plan.Types[typ], body)
	var outs []string
	err := r.chain.Process(context.Background(), e, func(e *pipeline.Event) error {
		outs = append(outs, r.describe(t, e, was))
		return nil
	})
	if !bytes.Equal(body, before) {
		t.Error("the bytes of the input were changed")
	}
	if err == nil || pipeline.ClassOf(err) == pipeline.ClassReject {
		r.conserved(t)
	} else {
		r.chain.Counts(nil)
	}
	switch {
	case err != nil && pipeline.ClassOf(err) != pipeline.ClassReject:
		outs = append(outs, pipeline.ClassOf(err).String()+" "+err.Error())
	case err != nil:
		outs = append(outs, "reject "+strings.TrimPrefix(err.Error()[strings.Index(err.Error(), ": ")+2:], ": "))
	case len(outs) == 0:
		return "filtered"
	}
	return strings.Join(outs, " | ")
}

// conserved checks that each stage counted an outcome for every event that reached it.
func (r *runner) conserved(t testing.TB) {
	t.Helper()
	r.chain.Counts(func(name string, n pipeline.StageCounts) {
		rejected := 0
		for _, count := range n.Rejected {
			rejected += count
		}
		if n.In+n.Added != n.Passed+n.Filtered+rejected {
			t.Errorf("stage %s: %+v", name, n)
		}
	})
}

// resolve encodes an event in an older schema and returns the body resolved to the
// current schema.
func (r *runner) resolve(t testing.TB, shape, event string) (typ int, body []byte) {
	t.Helper()
	writer := oldSchema(t, shape)
	enc, err := codec.EncodeJSON(writer, parseJSON(t, event))
	if err != nil {
		t.Fatal(err)
	}
	typ = slices.IndexFunc(r.plan.Types, func(s *codec.Schema) bool { return s.Name() == writer.Name() })
	resolver, err := resolve.New(writer, r.plan.Types[typ])
	if err != nil {
		t.Fatal(err)
	}
	if body, err = resolver.Append(nil, enc); err != nil {
		t.Fatal(err)
	}
	return typ, body
}

// setOld sets Old and OldType of an event that was written with an older schema.
func (r *runner) setOld(t testing.TB, e *pipeline.Event, shape, event string) {
	t.Helper()
	writer := oldSchema(t, shape)
	e.OldType = slices.IndexFunc(r.plan.Old, func(o topology.Old) bool { return codec.SameBytes(o.Schema, writer) })
	if e.OldType < 0 {
		return
	}
	enc, err := codec.EncodeJSON(writer, parseJSON(t, event))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.plan.Old[e.OldType].Layout.Walk(enc, &e.Old); err != nil {
		t.Fatal(err)
	}
}

func oldSchema(t testing.TB, shape string) *codec.Schema {
	t.Helper()
	text, err := os.ReadFile("testdata/schemas/" + shape + ".avsc")
	if err != nil {
		t.Fatal(err)
	}
	s, err := codec.ParseSchema(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// describe returns the changes of an event that passed the stages. was holds the values
// of the original event by path.
func (r *runner) describe(t testing.TB, e *pipeline.Event, was map[string]string) string {
	t.Helper()
	if e.Delete {
		return "deleted"
	}
	body := e.Append(nil)
	if err := codec.Validate(r.plan.Output[e.Type].Root(), body); err != nil {
		t.Errorf("the output is not a valid event: %v", err)
		return err.Error()
	}
	is := flatten(t, r.plan.Output[e.Type], body)
	var parts []string
	if e.NewKey != nil {
		parts = append(parts, fmt.Sprintf("key %q", e.NewKey))
	}
	if e.To != nil {
		parts = append(parts, "to "+strings.Join(e.To, ", "))
	}
	for _, path := range slices.Sorted(maps.Keys(is)) {
		if was[path] != is[path] {
			parts = append(parts, path+"="+is[path])
		}
	}
	for _, path := range slices.Sorted(maps.Keys(was)) {
		if _, ok := is[path]; !ok {
			parts = append(parts, "-"+gone(path, is))
		}
	}
	parts = slices.Compact(parts)
	if len(parts) == 0 {
		return "="
	}
	return strings.Join(parts, " ")
}

// gone returns the shortest prefix of a removed path below which no value is left.
func gone(path string, left map[string]string) string {
	for i, c := range path {
		if c == ']' {
			i++
		} else if c != '.' {
			continue
		}
		if !slices.ContainsFunc(slices.Collect(maps.Keys(left)), func(p string) bool { return strings.HasPrefix(p, path[:i]) }) {
			return path[:i]
		}
	}
	return path
}

// flatten returns the values of an event, as JSON, by path.
func flatten(t testing.TB, s *codec.Schema, body []byte) map[string]string {
	t.Helper()
	text, err := codec.AppendJSON(nil, s.Root(), body)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	var visit func(path string, v any)
	visit = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, field := range v {
				visit(strings.TrimPrefix(path+"."+name, "."), field)
			}
		case []any:
			for i, item := range v {
				visit(fmt.Sprintf("%s[%d]", path, i), item)
			}
		default:
			enc, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			out[path] = string(enc)
		}
	}
	visit("", parseJSON(t, string(text)))
	return out
}

func parseJSON(t testing.TB, text string) any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// The events of the tests.
const (
	order = `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","type":"OrderCreated","timestamp":"1997-01-01T00:00:00Z","version":1,
		"metadata":{"source":"web"},"data":{"id":"o-1","user_id":"u-1","items":[{"product_id":"cd","quantity":2,"price":3.5},{"product_id":"lp","quantity":1,"price":8.0}],"total_amount":15.0}}`
	user = `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","type":"UserCreated","timestamp":"1997-01-01T00:00:00Z","version":1,
		"metadata":{"card":"4111 1111"},"data":{"id":"u-1","email":"a@b.cd","name":"Ærø Ü."}}`
	paid = `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","type":"OrderPaid","timestamp":"1997-01-01T00:00:00Z","version":3,
		"metadata":{},"data":{"id":"o-1"}}`
	sampled = `{"id":"sample-1","type":"Sampled","timestamp":"1997-01-01T00:00:00Z","data":{}}`
	ordered = `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","timestamp":"1997-01-01T00:00:00Z",
		"data":{"id":"o-1","user_id":"u-1","items":[{"product_id":"cd","quantity":2,"price":3.5}],"total_amount":0.0,"total_cents":"700"}}`
)

// with returns an event with some fields replaced. pairs alternates paths and JSON values.
func with(t testing.TB, event string, pairs ...string) string {
	t.Helper()
	root := parseJSON(t, event).(map[string]any)
	for i := 0; i < len(pairs); i += 2 {
		path := strings.Split(pairs[i], ".")
		in := root
		for _, name := range path[:len(path)-1] {
			in = in[name].(map[string]any)
		}
		in[path[len(path)-1]] = parseJSON(t, pairs[i+1])
	}
	out, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// allocations returns the number of allocations for one event after warm-up: the walk,
// the stages and the encoding of the output.
func allocations(t *testing.T, r *runner, event string) float64 {
	t.Helper()
	typ, body := r.encode(t, event)
	var e pipeline.Event
	record := &pipeline.Record{Topic: "shop.events", Key: []byte("k-1"), Value: body}
	out := make([]byte, 0, 64<<10)
	keep := func(e *pipeline.Event) error { out = e.Append(out); return nil }
	ctx := context.Background()
	return testing.AllocsPerRun(200, func() {
		out = out[:0]
		e.Record, e.Type, e.NewKey, e.To, e.OldType, e.Arena = record, typ, nil, nil, -1, e.Arena[:0]
		if err := r.plan.Layouts[typ].Walk(body, &e.View); err != nil {
			t.Fatal(err)
		}
		if err := r.chain.Process(ctx, &e, keep); err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
			t.Fatal(err)
		}
	})
}

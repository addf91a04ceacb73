package cases

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/rows"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// eventOutcome is what became of an event.
type eventOutcome struct {
	kind   outcomeKind
	to     string // the pipeline's own topic
	out    []writtenRecord
	stage  string // that filtered or rejected it, or stopped the worker
	reason string
	error  string

	snapshot cli.OrderedJSON

	failed   error // it could not be run at all
	failedAt *yaml.Node
}

// writtenRecord is a record that came out.
type writtenRecord struct {
	topic   string
	key     string
	headers []pipeline.Header
	event   cli.OrderedJSON
}

func (w *writtenRecord) header(name string) any {
	r := pipeline.Record{Headers: w.headers}
	if value, ok := r.Header(name); ok {
		return string(value)
	}
	return nil
}

func (w writtenRecord) String() string {
	return fmt.Sprintf("to %s, key %s: %s", w.topic, cli.Quote(w.key), cli.CompactJSON(w.event))
}

func (w *writtenRecord) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	n.Content = []*yaml.Node{textNode("topic"), textNode(w.topic), textNode("key"), textNode(w.key), textNode("event"), yamlNode(w.event)}
	return n
}

// update makes an item of out expect the record.
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

func (o *eventOutcome) String() string {
	switch o.kind {
	case kindOut:
		texts := make([]string, len(o.out))
		for i, w := range o.out {
			texts[i] = w.String()
		}
		return "written " + strings.Join(texts, "; ")
	case kindFiltered:
		return "filtered by " + o.stage
	case kindDeadLetter:
		return fmt.Sprintf("a dead letter of %s: %s: %s", o.stage, o.reason, o.error)
	case kindStopped:
		return fmt.Sprintf("the worker stopped by %s: %s", o.stage, o.error)
	case kindSnapshot:
		return "the snapshot " + cli.CompactJSON(o.snapshot)
	case kindRejected:
		return fmt.Sprintf("rejected: %s: %s", o.reason, o.error)
	}
	return string(o.kind)
}

// node returns the outcome as a case expects it.
func (o *eventOutcome) node() *yaml.Node {
	switch o.kind {
	case kindOut:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for i := range o.out {
			n.Content = append(n.Content, o.out[i].node())
		}
		return n
	case kindFiltered, kindStopped:
		return textNode(o.stage)
	case kindDeadLetter:
		return yamlNode(cli.OrderedJSON{{Name: "stage", Value: o.stage}, {Name: "reason", Value: o.reason}})
	case kindSnapshot:
		return yamlNode(o.snapshot)
	case kindRejected:
		return textNode(o.reason)
	}
	return yamlNode(true)
}

// caseRunner runs cases by the code that a worker runs: what is missing is
// Kafka and the registry.
type caseRunner struct {
	topology *topology.Topology
	files    fs.FS // of schemas
	now      time.Time
	coverage map[string]*pipelineCoverage
}

// pipelineCoverage says what the cases have shown of a pipeline.
type pipelineCoverage struct {
	decode pipeline.StageCounts   // what is no event has no stage
	stages []pipeline.StageCounts // in order
	types  map[string]bool        // that were sent
}

func newCaseRunner(e *cli.Env, flags *cli.TopologyFlags) (*caseRunner, error) {
	r := &caseRunner{now: caseNow, coverage: map[string]*pipelineCoverage{}}
	own := *e
	own.Now = func() time.Time { return r.now }
	var err error
	if r.topology, err = flags.Load(&own); err != nil {
		return nil, err
	}
	if r.files, _, err = flags.Schemas(); err != nil {
		return nil, err
	}
	for _, pl := range r.topology.Pipelines {
		r.coverage[pl.Name] = &pipelineCoverage{decode: pipeline.StageCounts{Rejected: map[pipeline.Reason]int{}}, stages: make([]pipeline.StageCounts, len(pl.Stages)), types: map[string]bool{}}
	}
	return r, nil
}

// run runs a case. A fault says that it names something that is not there.
func (r *caseRunner) run(ctx context.Context, c *testCase) ([]*eventOutcome, *topology.Fault) {
	r.now = c.now
	if c.projection != nil {
		i := slices.IndexFunc(r.topology.Projections, func(p *topology.Projection) bool { return p.Name == c.projection.Value })
		if i < 0 {
			f := c.file.faultAt(c.projection.Line, c.projection.Column, "", "the topology has no projection %q", c.projection.Value)
			return nil, &f
		}
		return r.runProjection(ctx, c, r.topology.Projections[i]), nil
	}
	pl, fault := r.pipeline(c)
	if fault == nil {
		fault = r.fill(c)
	}
	if fault != nil {
		return nil, fault
	}
	return r.runPipeline(ctx, c, pl), nil
}

func (r *caseRunner) pipeline(c *testCase) (*topology.Pipeline, *topology.Fault) {
	var names []string
	for _, pl := range r.topology.Pipelines {
		if c.pipeline != nil && pl.Name == c.pipeline.Value {
			return pl, nil
		}
		names = append(names, pl.Name)
	}
	if c.pipeline == nil && len(names) == 1 {
		return r.topology.Pipelines[0], nil
	}
	at, msg := c.at, "the case has no pipeline"
	if c.pipeline != nil {
		at, msg = c.pipeline, fmt.Sprintf("the topology has no pipeline %q", c.pipeline.Value)
	}
	f := c.file.faultAt(at.Line, at.Column, "there are "+strings.Join(names, ", "), "%s", msg)
	return nil, &f
}

// fill gives tables their rows: those of the case, else those of its file.
func (r *caseRunner) fill(c *testCase) *topology.Fault {
	fault := func(n *yaml.Node, format string, args ...any) *topology.Fault {
		f := c.file.faultAt(n.Line, n.Column, "", format, args...)
		return &f
	}
	for _, t := range r.topology.Tables {
		held := rows.New()
		if t.Topic == nil {
			var err error
			if held, err = chain.FileRows(t); err != nil {
				return fault(c.at, "table %s: %v", t.Name, err)
			}
		}
		t.Rows = held
	}
	for _, given := range c.tables {
		i := slices.IndexFunc(r.topology.Tables, func(t *topology.Table) bool { return t.Name == given.name.Value })
		if i < 0 {
			return fault(given.name, "the topology has no table %q", given.name.Value)
		}
		held := rows.New()
		for j := 0; j+1 < len(given.rows); j += 2 {
			row, err := codec.EncodeJSON(r.topology.Tables[i].Schema, yamlValue(given.rows[j+1]))
			if err != nil {
				at, _ := placeOf(given.rows[j+1], err)
				return fault(at, "this is no row of table %s: %v", given.name.Value, err)
			}
			held.Set([]byte(given.rows[j].Value), row)
		}
		r.topology.Tables[i].Rows = held
	}
	return nil
}

// placeOf returns where in a node an error of encoding it is.
func placeOf(n *yaml.Node, err error) (*yaml.Node, error) {
	var path *codec.PathError
	if errors.As(err, &path) {
		return nodeAt(n, path.Path), err
	}
	return n, err
}

// givenSchemas stands for the registry: schemas by their ids, from 1.
type givenSchemas struct{ schemas []*codec.Schema }

// Schema implements schemaSource.
func (g *givenSchemas) Schema(_ context.Context, ref codec.SchemaRef) (*codec.Schema, error) {
	if ref.ByGUID || ref.ID < 1 || ref.ID > len(g.schemas) {
		return nil, pipeline.Reject(pipeline.ReasonUnknownSchema, "there is no schema %s", ref)
	}
	return g.schemas[ref.ID-1], nil
}

func (g *givenSchemas) id(s *codec.Schema) int {
	i := slices.IndexFunc(g.schemas, func(have *codec.Schema) bool { return have == s })
	if i < 0 {
		i = len(g.schemas)
		g.schemas = append(g.schemas, s)
	}
	return i + 1
}

// givenAnswers stands for services.
type givenAnswers []caseAnswer

// RoundTrip implements [http.RoundTripper]. A request that the case does not
// answer is refused.
func (g givenAnswers) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer func() { _ = req.Body.Close() }() // as every transport does
	}
	url := req.URL.String()
	a := caseAnswer{status: http.StatusBadRequest, body: fmt.Appendf(nil, "the case has no answer to %s %s", req.Method, url)}
	for _, given := range g {
		if given.method == req.Method && given.url == url {
			a = given
			break
		}
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)), StatusCode: a.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(a.body)), ContentLength: int64(len(a.body)), Request: req,
	}, nil
}

func (r *caseRunner) runPipeline(ctx context.Context, c *testCase, pl *topology.Pipeline) (out []*eventOutcome) {
	schemas := &givenSchemas{schemas: slices.Clone(pl.Types)}
	for _, s := range pl.Output {
		schemas.id(s) // events that are given as bytes can have these ids
	}
	for _, s := range pl.Stages {
		if asker, ok := s.Built.(stage.Asker); ok {
			asker.AskThrough(givenAnswers(c.answers))
		}
	}
	h, err := chain.NewOfflineRehearsal(r.topology, pl, schemas, func() time.Time { return r.now })
	if err != nil {
		return []*eventOutcome{{failed: err}}
	}
	for i, e := range c.events {
		rec, s, at, err := r.record(e, pl.From, schemas, i)
		if err != nil {
			out = append(out, &eventOutcome{failed: err, failedAt: at})
			continue
		}
		out = append(out, r.handle(ctx, h, pl, rec, s))
	}
	return out
}

// handle hands one record to the handler, as a batch of its own.
func (r *caseRunner) handle(ctx context.Context, h *chain.Rehearsal, pl *topology.Pipeline, rec *pipeline.Record, s *codec.Schema) *eventOutcome {
	got := &eventOutcome{to: pl.To.Name}
	out, err := h.Run(ctx, rec)
	filtered, stopped := r.cover(h, pl, s)
	decoded := &r.coverage[pl.Name].decode
	decoded.In++
	decoded.Passed++
	switch {
	case err != nil && pipeline.ClassOf(err) == pipeline.ClassFatal && stopped != "":
		got.kind, got.stage, got.error = kindStopped, stopped, err.Error()
		return got
	case err != nil:
		got.failed = err
		return got
	}
	got.kind, got.stage = kindFiltered, filtered
	for i := range out {
		rec := &out[i].Record
		switch {
		case rec.Topic == pl.DeadLetter.Name:
			got.kind = kindDeadLetter
			header := func(name string) string { value, _ := rec.Header(name); return string(value) }
			got.stage, got.reason, got.error = header(deadletter.HeaderStage), header(deadletter.HeaderReason), header(deadletter.HeaderError)
			if got.stage == deadletter.StageDecode {
				decoded.Passed--
				decoded.Rejected[pipeline.Reason(got.reason)]++
			}
		default:
			got.kind = kindOut
			w, err := written(&out[i])
			if err != nil {
				return &eventOutcome{failed: fmt.Errorf("what was written to %s cannot be read: %w", rec.Topic, err)}
			}
			got.out = append(got.out, w)
		}
	}
	return got
}

// cover adds what the stages did with one event, and returns the one that
// filtered it, and the one that did not let go of it.
func (r *caseRunner) cover(h *chain.Rehearsal, pl *topology.Pipeline, s *codec.Schema) (filtered, stopped string) {
	coverage := r.coverage[pl.Name]
	if s != nil {
		coverage.types[s.Name()] = true
	}
	i := 0
	h.StageCounts(func(name string, n pipeline.StageCounts) {
		sum := &coverage.stages[i]
		sum.In, sum.Added, sum.Passed = sum.In+n.In, sum.Added+n.Added, sum.Passed+n.Passed
		sum.Filtered, sum.Skipped = sum.Filtered+n.Filtered, sum.Skipped+n.Skipped
		kept := n.In + n.Added - n.Passed - n.Filtered
		for reason, count := range n.Rejected {
			kept -= count
			if sum.Rejected == nil {
				sum.Rejected = map[pipeline.Reason]int{}
			}
			sum.Rejected[reason] += count
		}
		if n.Filtered > 0 && filtered == "" {
			filtered = name
		}
		if kept > 0 {
			stopped = name
		}
		i++
	})
	return filtered, stopped
}

func written(o *chain.Output) (w writtenRecord, err error) {
	w = writtenRecord{topic: o.Record.Topic, key: string(o.Record.Key), headers: slices.Clone(o.Record.Headers)}
	w.event, err = objectOf(o.Schema, o.Body)
	return w, err
}

// objectOf returns the JSON form of a record.
func objectOf(s *codec.Schema, body []byte) (cli.OrderedJSON, error) {
	text, err := codec.AppendJSON(nil, s.Root(), body)
	if err != nil {
		return nil, err
	}
	v, err := cli.ParseJSON(text)
	if err != nil {
		return nil, err
	}
	object, _ := v.(cli.OrderedJSON) // a schema's root is a record
	return object, nil
}

// record returns the record that an event is, and the schema it has; nil if it
// is given as bytes. An error is in the event's form, at a node.
func (r *caseRunner) record(e *caseEvent, topic *topology.Topic, schemas *givenSchemas, i int) (*pipeline.Record, *codec.Schema, *yaml.Node, error) {
	rec := &pipeline.Record{Topic: topic.Name, Offset: int64(i), Headers: e.headers, Time: e.time}
	if rec.Time.IsZero() {
		rec.Time = r.now
	}
	if e.key != nil {
		rec.Key = []byte(e.key.Value)
	}
	if e.in == nil {
		rec.Value = e.raw
		return rec, nil, nil, nil
	}
	ev, ok := yamlValue(e.in).(map[string]any)
	if !ok {
		return nil, nil, e.in, errors.New("an event is a mapping of its fields")
	}
	s, at, err := r.schemaOf(e, ev, topic)
	if err != nil {
		return nil, nil, at, err
	}
	t := &event.Type{Name: s.ShortName(), Schema: s, Time: -1}
	if f := s.Root().Field("timestamp"); f != nil && event.TimestampUnit(f.Type) != 0 {
		t.Time = 0
	}
	fill := event.Encoder{
		NewID: func() string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", i+1) },
		Now:   func() time.Time { return rec.Time },
	}
	if topic.Bare == nil {
		fill.Complete(t, ev)
	}
	body, err := codec.EncodeJSON(s, ev)
	if err != nil {
		at, err := placeOf(e.in, err)
		return nil, nil, at, err
	}
	if stamp, ok := ev["timestamp"].(string); ok && e.time.IsZero() {
		if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil {
			rec.Time = at
		}
	}
	if data, ok := ev["data"].(map[string]any); ok && e.key == nil {
		if id, ok := data["id"].(string); ok {
			rec.Key = []byte(id)
		}
	}
	rec.Value = append(codec.AppendFrame(nil, schemas.id(s)), body...)
	return rec, s, nil, nil
}

// schemaOf returns the schema that an event was written with.
func (r *caseRunner) schemaOf(e *caseEvent, event map[string]any, topic *topology.Topic) (*codec.Schema, *yaml.Node, error) {
	if e.writer != nil {
		text, err := fs.ReadFile(r.files, e.writer.Value+".avsc")
		if err != nil {
			return nil, e.writer, fmt.Errorf("the writer's schema: %w", err)
		}
		s, err := codec.ParseSchema(string(text))
		if err != nil {
			return nil, e.writer, fmt.Errorf("the writer's schema: %w", err)
		}
		return s, nil, nil
	}
	name, at := "", e.in
	if e.typ != nil {
		name, at = e.typ.Value, e.typ
	} else if text, ok := event["type"].(string); ok {
		name = text
		at = nodeAt(e.in, "type")
	}
	var names []string
	for _, s := range topic.Types {
		if name == s.Name() || name == s.ShortName() || len(topic.Types) == 1 && e.typ == nil {
			return s, nil, nil
		}
		names = append(names, s.ShortName())
	}
	if name == "" {
		return nil, at, fmt.Errorf("the event has no type; %s has %s", topic.Name, strings.Join(names, ", "))
	}
	return nil, at, fmt.Errorf("there is no type %s on %s; it has %s", name, topic.Name, strings.Join(names, ", "))
}

// runProjection folds the events of a case.
func (r *caseRunner) runProjection(ctx context.Context, c *testCase, p *topology.Projection) (out []*eventOutcome) {
	schemas := &givenSchemas{schemas: slices.Clone(p.From.Types)}
	f := folding{
		Projection: p, decoder: event.NewDecoder(schemas, p.From.Types, nil), folder: p.Fold.NewFolder(),
		states: map[string]*fold.Aggregate{}, seen: map[string]bool{},
	}
	for i, e := range c.events {
		rec, _, at, err := r.record(e, p.From, schemas, i)
		if err != nil {
			out = append(out, &eventOutcome{failed: err, failedAt: at})
			continue
		}
		got, err := f.fold(ctx, rec)
		switch {
		case err != nil && pipeline.ClassOf(err) == pipeline.ClassReject:
			got = &eventOutcome{kind: kindRejected, reason: string(pipeline.ReasonOf(err)), error: err.Error()}
		case err != nil:
			got = &eventOutcome{failed: err}
		}
		out = append(out, got)
	}
	return out
}

// folding is a projection in memory.
type folding struct {
	*topology.Projection
	decoder *event.Decoder
	folder  *fold.Folder
	states  map[string]*fold.Aggregate
	seen    map[string]bool // ids of events
}

func (f *folding) fold(ctx context.Context, rec *pipeline.Record) (*eventOutcome, error) {
	d, err := f.decoder.Decode(ctx, rec, f.Fold.Folds)
	if err != nil {
		return nil, err
	}
	if !f.Fold.Folds(d.Type) {
		return &eventOutcome{kind: kindIgnored}, nil
	}
	id, err := f.folder.Read(d.Type, d.Body, fold.OriginOf(rec))
	if err != nil {
		return nil, err
	}
	event := string(f.folder.EventID())
	if event != "" && f.seen[event] {
		return &eventOutcome{kind: kindDuplicate}, nil
	}
	f.seen[event] = true
	a := f.states[string(id)]
	if a == nil {
		a = &fold.Aggregate{}
		f.states[string(id)] = a
	}
	switch done, err := f.folder.Apply(a); {
	case err != nil:
		return nil, err
	case done == fold.Late:
		return &eventOutcome{kind: kindLate}, nil
	}
	state, err := objectOf(f.Fold.State(), a.State)
	if err != nil {
		return nil, err
	}
	status := fold.Live
	if a.Deleted {
		status = fold.Deleted
	}
	return &eventOutcome{kind: kindSnapshot, snapshot: cli.OrderedJSON{
		{Name: "id", Value: string(id)}, {Name: "version", Value: json.Number(fmt.Sprint(a.Version))}, {Name: "status", Value: status}, {Name: "state", Value: state},
	}}, nil
}

package cases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/trace"
	"millrace/pipeline/rows"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/topology/avsc"
)

// A caseRunner runs cases with the code of workers, but without Kafka and with a
// fake registry.
type caseRunner struct {
	topology *topology.Topology
	files    fs.FS                        // schema files
	now      time.Time                    // the clock of the current case
	coverage map[string]*pipelineCoverage // by name of the pipeline
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
		r.coverage[pl.Name] = &pipelineCoverage{
			decode: pipeline.StageCounts{Rejected: map[pipeline.Reason]int{}},
			stages: make([]pipeline.StageCounts, len(pl.Stages)),
			types:  map[string]bool{},
		}
	}
	return r, nil
}

// run runs a case and returns the outcome of each event. It returns a fault if the
// case names something that the topology does not have.
func (r *caseRunner) run(ctx context.Context, c *testCase) ([]*eventOutcome, *topology.Fault) {
	r.now = c.now
	if c.projection != nil {
		i := slices.IndexFunc(r.topology.Projections, func(p *topology.Projection) bool { return p.Name == c.projection.Value })
		if i < 0 {
			f := c.file.faultAt(c.projection.Line, c.projection.Column, "", "the topology has no projection %q", c.projection.Value)
			return nil, &f
		}
		if r.topology.Projections[i].Fold.Window().Size > 0 {
			f := c.file.faultAt(c.projection.Line, c.projection.Column, "test its fold as a projection without a window", "the projection %q has windows, which test cannot fold", c.projection.Value)
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

// pipeline returns the pipeline of a case. A topology with a single pipeline has a
// default.
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
	f := c.file.faultAt(at.Line, at.Column, "the pipelines are "+strings.Join(names, ", "), "%s", msg)
	return nil, &f
}

// fill sets the rows of all tables: the rows of the case if it has any, otherwise
// the rows of the table's file. A table on a topic is empty by default.
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
				return fault(placeOf(given.rows[j+1], err), "invalid row of table %s: %v", given.name.Value, err)
			}
			held.Set([]byte(given.rows[j].Value), row)
		}
		r.topology.Tables[i].Rows = held
	}
	return nil
}

// placeOf returns the part of n that an error of encoding n is about.
func placeOf(n *yaml.Node, err error) *yaml.Node {
	var path *codec.PathError
	if errors.As(err, &path) {
		return nodeAt(n, path.Path)
	}
	return n
}

// runPipeline processes the events of a case in one partition and returns their
// outcomes.
func (r *caseRunner) runPipeline(ctx context.Context, c *testCase, pl *topology.Pipeline) (out []*eventOutcome) {
	schemas := &fakeRegistry{schemas: slices.Clone(pl.Types)}
	for _, s := range pl.Output {
		schemas.id(s) // events that are given as bytes can have these ids
	}
	for _, s := range pl.Stages {
		if asker, ok := s.Built.(stage.Requester); ok {
			asker.SetTransport(cannedAnswers(c.answers))
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

// handle processes one record as a batch of its own. s is the record's schema, or
// nil.
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
	if rec.Value == nil {
		got.stage = trace.StageTombstone
	}
	for i := range out {
		rec := &out[i].Record
		switch {
		case rec.Topic == pl.DeadLetter.Name:
			got.kind = kindDeadLetter
			letter := deadletter.Parse(rec)
			got.stage, got.reason, got.error = letter.Stage, string(letter.Reason), letter.Error
			if got.stage == deadletter.StageDecode {
				decoded.Passed--
				decoded.Rejected[pipeline.Reason(got.reason)]++
			}
		default:
			got.kind = kindOut
			w, err := written(&out[i])
			if err != nil {
				return &eventOutcome{failed: fmt.Errorf("decoding the record written to %s: %w", rec.Topic, err)}
			}
			got.out = append(got.out, w)
		}
	}
	return got
}

// cover adds the counts of the stages for one event to the coverage. It returns the
// stage that filtered the event and the stage that neither passed, filtered nor
// rejected it; "" if there is none.
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
		stuck := n.In + n.Added - n.Passed - n.Filtered
		for reason, count := range n.Rejected {
			stuck -= count
			if sum.Rejected == nil {
				sum.Rejected = map[pipeline.Reason]int{}
			}
			sum.Rejected[reason] += count
		}
		if n.Filtered > 0 && filtered == "" {
			filtered = name
		}
		if stuck > 0 {
			stopped = name
		}
		i++
	})
	return filtered, stopped
}

// written decodes an output record.
func written(o *chain.Output) (w writtenRecord, err error) {
	w = writtenRecord{topic: o.Record.Topic, key: o.Key, headers: slices.Clone(o.Record.Headers)}
	if !o.Tombstone {
		w.event, err = objectOf(o.Schema, o.Body)
	}
	return w, err
}

// objectOf returns an Avro record as JSON.
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

// record encodes the i-th event of a case as a Kafka record and returns its schema,
// which is nil if the event is given as bytes. The node is the place of the error.
func (r *caseRunner) record(e *caseEvent, topic *topology.Topic, schemas *fakeRegistry, i int) (*pipeline.Record, *codec.Schema, *yaml.Node, error) {
	rec := &pipeline.Record{Topic: topic.Name, Offset: int64(i), Headers: e.headers, Time: e.time}
	if rec.Time.IsZero() {
		rec.Time = r.now
	}
	if e.key != nil {
		var err error
		if rec.Key, err = topic.KeyFormat.Encode(e.key.Value, schemas.id); err != nil {
			return nil, nil, e.key, err
		}
	}
	if e.in == nil {
		rec.Value = e.raw
		return rec, nil, nil, nil
	}
	ev, ok := yamlValue(e.in).(map[string]any)
	if !ok {
		return nil, nil, e.in, errors.New("an event must be a mapping of its fields")
	}
	s, at, err := r.schemaOf(e, ev, topic)
	if err != nil {
		return nil, nil, at, err
	}
	if topic.Bare == nil {
		newID := func() string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", i+1) }
		event.Complete(s, ev, newID, func() time.Time { return rec.Time })
	}
	body, err := codec.EncodeJSON(s, ev)
	if err != nil {
		return nil, nil, placeOf(e.in, err), err
	}
	if stamp, ok := ev["timestamp"].(string); ok && e.time.IsZero() {
		if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil {
			rec.Time = at
		}
	}
	if data, ok := ev["data"].(map[string]any); ok && e.key == nil {
		if id, ok := data["id"].(string); ok {
			var err error
			if rec.Key, err = topic.KeyFormat.Encode(id, schemas.id); err != nil {
				return nil, nil, e.in, err
			}
		}
	}
	rec.Value = append(codec.AppendFrame(nil, schemas.id(s)), body...)
	return rec, s, nil, nil
}

// schemaOf returns the writer's schema of an event: the one that the case names, or
// the one of the event's type. A topic with a single type has a default. The node is
// the place of the error.
func (r *caseRunner) schemaOf(e *caseEvent, event map[string]any, topic *topology.Topic) (*codec.Schema, *yaml.Node, error) {
	if e.writer != nil {
		s, err := avsc.One(r.files, e.writer.Value+".avsc")
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
		return nil, at, fmt.Errorf("the event has no type; the types of %s are %s", topic.Name, strings.Join(names, ", "))
	}
	return nil, at, fmt.Errorf("%s is not a type of %s; the types are %s", name, topic.Name, strings.Join(names, ", "))
}

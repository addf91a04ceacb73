package cases

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/topology"
)

// runProjection folds the events of a case and returns their outcomes.
func (r *caseRunner) runProjection(ctx context.Context, c *testCase, p *topology.Projection) (out []*eventOutcome) {
	schemas := &fakeRegistry{schemas: slices.Clone(p.From.Types)}
	decoder := event.NewDecoder(schemas, p.From.Types, nil)
	decoder.ReadKeys(p.From.KeyFormat, p.From.Name)
	f := folding{
		rules: p.Fold, decoder: decoder, folder: p.Fold.NewFolder(),
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

// A folding is a projection in memory.
type folding struct {
	rules   *fold.Fold
	decoder *event.Decoder
	folder  *fold.Folder
	states  map[string]*fold.Aggregate // by aggregate id
	seen    map[string]bool            // by event id
}

// fold folds one record. A reject is returned as an error.
func (f *folding) fold(ctx context.Context, rec *pipeline.Record) (*eventOutcome, error) {
	d, err := f.decoder.DecodeWithKey(ctx, rec, f.rules.Folds)
	if rec.Value == nil && f.rules.Tombstones() != fold.RejectTombstones {
		d, err = event.Decoded{Type: fold.Tombstone, Key: d.Key}, nil
	}
	if err != nil {
		return nil, err
	}
	if !f.rules.Folds(d.Type) {
		return &eventOutcome{kind: kindIgnored}, nil
	}
	id, err := f.folder.Read(d.Type, d.Body, fold.OriginOf(rec, d.Key))
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
	case done == fold.Ignored:
		return &eventOutcome{kind: kindIgnored}, nil
	}
	state, err := objectOf(f.rules.State(), a.State)
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
